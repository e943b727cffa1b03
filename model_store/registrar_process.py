"""The learner's hold on the registrar: started as a child process, restarted where it died, waited for at the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from model_store.registration_queue import RegistrationQueue
from model_store.tracking_uri import check_tracking_uri

# A registrar that dies at once (MLflow is broken here) is not started again and again.
_SECONDS_BETWEEN_STARTS = 30.0
# Between asking a process to end and ending it.
_GRACE_SECONDS = 5.0
# While it drains, whoever waits is asked this often whether to go on.
_LOOK_SECONDS = 0.1


class RegistrarProcess:
    """`python -m model_store.registrar` on a queue. It ends with this process, also where this one is killed."""

    def __init__(self, queue: RegistrationQueue, tracking_uri: str, *, drain_seconds: float, log_file: Path) -> None:
        """`log_file`: where its stderr goes, appended. `UserError` for a tracking URI that MLflow cannot use."""
        check_tracking_uri(tracking_uri)
        self._queue = queue
        self._tracking_uri = tracking_uri
        self._drain_seconds = drain_seconds
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
        command = [sys.executable, "-m", "model_store.registrar", "--queue", str(self._queue.folder.absolute())]
        command += ["--tracking-uri", self._tracking_uri, "--drain-seconds", str(self._drain_seconds)]
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()},
                # Ctrl-C goes to the learner alone, which ends its own work first and then closes the registrar.
                start_new_session=True,
            )
        self._started_at = time.monotonic()
        self.starts += 1
        return True

    def close(
        self, drain_seconds: float | None = None, goes_on: Callable[[float], bool] = lambda _waited_seconds: True
    ) -> int:
        """Let it finish what waits, at most so long (default: that of the start), and while `goes_on(waited_seconds)`,
        which is asked again and again; how many remain for a later run.

        1. Its stdin ends: it drains, and ends by itself where the queue is empty or the registry is away.
        2. Past the time it is ended; the queue and MLflow stand this at any point.
        """
        if self._process is not None:
            seconds = self._drain_seconds if drain_seconds is None else min(drain_seconds, self._drain_seconds)
            # 1.
            assert self._process.stdin is not None
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
        return len(self._queue.pending_numbers())

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
                self._process.stdin.close()
            self._process.wait()
            self._process = None


def _python_path() -> str:
    """The child finds these packages wherever this process found them."""
    root = str(Path(__file__).parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    return root if not inherited else f"{root}{os.pathsep}{inherited}"
