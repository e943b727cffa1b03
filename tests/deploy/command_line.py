"""`palimpsest` as a user calls it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PROGRAM = [sys.executable, "-c", "from deploy.cli import main; main()"]
DEADLINE_SECONDS = 120.0


def environment(**variables: str) -> dict[str, str]:
    """Nothing of ours from outside, one thread, and these. Learners leave their addresses where nobody else looks."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PALIMPSEST_", "MLFLOW_"))}
    learners = str(Path(tempfile.gettempdir()) / "palimpsest-tests-learners")
    return {**inherited, "OMP_NUM_THREADS": "1", "PALIMPSEST_LEARNERS_DIR": learners, **variables}


def palimpsest(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = DEADLINE_SECONDS * 2,
) -> subprocess.CompletedProcess[str]:
    """Run it to its end; stdout and stderr as text."""
    return subprocess.run(
        [*_PROGRAM, *map(str, arguments)],
        env=environment(**(env or {})),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def events(stderr: str) -> list[dict[str, Any]]:
    """Every line is one JSON object, or this raises."""
    return [json.loads(line) for line in stderr.splitlines()]


class Running:
    """It runs meanwhile: its lines as they come, and signals to it."""

    def __init__(self, *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [*_PROGRAM, *map(str, arguments)],
            env=environment(**(env or {})),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, is_there: Callable[[list[str]], bool]) -> None:
        """Until the lines so far are as wanted."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_there(self.lines):
            assert self.process.poll() is None or is_there(self.lines), "\n".join(self.lines)
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.02)

    def wait_for_event(self, *names: str) -> None:
        """Until one of these events was told."""
        self.wait_for(lambda lines: any(f'"event": "{name}"' in line for line in lines for name in names))

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Its exit code, when it has ended by itself."""
        code = self.process.wait(DEADLINE_SECONDS)
        self._thread.join(DEADLINE_SECONDS)
        return code

    @property
    def events(self) -> list[dict[str, Any]]:
        return events("\n".join(self.lines))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._thread.join(DEADLINE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
