"""A program of ours that works beside a process, and ends with it, also where that one is killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# One that dies at once (MLflow is broken here) is not started again and again.
_SECONDS_BETWEEN_STARTS = 30.0
# Between asking a process to end and ending it.
_GRACE_SECONDS = 5.0
# While it is waited for, whoever waits is asked this often whether to go on.
_LOOK_SECONDS = 0.1


class ChildProcess:
    """`python -m MODULE`. The end of its stdin tells it to end: the pipe ends with this process, however that ends."""

    def __init__(self, module: str, arguments: Sequence[str], *, log_file: Path) -> None:
        """`log_file`: where its stdout and stderr go, appended. Nothing is started yet."""
        self._command = [sys.executable, "-m", module, *arguments]
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = float("-inf")
        self.starts = 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> bool:
        """Start it if it is not running; call as often as you like. False: it died, and it is too early to retry."""
        if self.alive:
            return True
        if time.monotonic() - self._started_at < _SECONDS_BETWEEN_STARTS:
            return False
        self._release()
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()},
                # Ctrl-C goes to the parent alone, which ends its own work first and then closes the child.
                start_new_session=True,
            )
        self._started_at = time.monotonic()
        self.starts += 1
        return True

    def nudge(self) -> None:
        """A byte on its stdin: what it means is the program's affair. One that is not running does not hear it."""
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # it has died; another thread closes it just now
                process.stdin.write(b"\n")
                process.stdin.flush()

    def close(self, seconds: float, goes_on: Callable[[float], bool] = lambda _waited_seconds: True) -> None:
        """Let it end by itself, at most so long, and while `goes_on(waited_seconds)`, which is asked again and again.

        1. Its stdin ends.
        2. Past the time it is ended; whatever it works on has to stand this at any point.
        """
        if self._process is None:
            return
        # 1.
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if not self._ends_within(seconds, goes_on):
            # 2.
            self._process.terminate()
            try:
                self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._release()

    def _ends_within(self, seconds: float, goes_on: Callable[[float], bool]) -> bool:
        assert self._process is not None
        began = time.monotonic()
        while (waited := time.monotonic() - began) < seconds and goes_on(waited):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(min(_LOOK_SECONDS, seconds - waited))
                return True
        return self._process.poll() is not None

    def _release(self) -> None:
        if self._process is not None:
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            self._process.wait()
            self._process = None


def _python_path() -> str:
    """The child finds these packages wherever this process found them."""
    root = str(Path(__file__).parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    return root if not inherited else f"{root}{os.pathsep}{inherited}"
