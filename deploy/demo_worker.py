"""The demo's worker, a process of its own beside the learner, and how long the learner waits for it.

    python -m deploy.demo_worker restructure ...

is `palimpsest restructure ...`, which ends when its stdin ends: also where the demo was killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from consumers.observers import Observer
from deploy.demo_stream import DemoStream
from pipeline.record import Partition
from pipeline.stream_learner import StepReport, StreamLearner

_ENDS_WITHIN_SECONDS = 20.0
# Idle for so long, a learner has read all, and has learnt its last partial batch.
_IDLE_SECONDS = 2.5


class DemoWorker(Observer):
    """Hears the learner. Once it has learnt all that there is and waits for no answer of the worker's, the stream goes
    on; or the learner is ended where that has come to its end, while one in production goes on."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path, stream: DemoStream) -> None:
        self.stop = threading.Event()
        self._stream = stream
        self._process = process
        self._log_file = log_file
        self._learner: StreamLearner | None = None
        self._busy_at = time.monotonic()

    @property
    def problem(self) -> str | None:
        """One line, where it ended by itself."""
        code = self._process.poll()
        return None if code is None else f"the worker ended with code {code}: see {self._log_file}"

    def started(self, learner: StreamLearner, resumed: bool) -> None:
        self._learner = learner
        self._busy_at = time.monotonic()

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        self._busy_at = time.monotonic()

    def adopted(self, learner: StreamLearner, kind: str, expected_seconds: float | None) -> None:
        self._busy_at = time.monotonic()

    def turned(self, lag_records: Mapping[Partition, int], away_seconds: float | None = None) -> None:
        if not lag_records or any(lag_records.values()):
            return  # not all is read, or nobody knows yet
        if self._stream.is_sending:
            self._busy_at = time.monotonic()
            return
        is_awaited = self._learner is not None and self._learner.trigger.request is not None and not self.problem
        if not is_awaited and time.monotonic() - self._busy_at >= _IDLE_SECONDS:
            self._busy_at = time.monotonic()
            if not self._stream.begin_next():
                self.stop.set()


@contextmanager
def demo_worker(
    *,
    stream: str,
    parts: DemoStream,
    state: Path,
    settings_file: Path | None,
    bootstrap_servers: str,
    log_file: Path,
) -> Iterator[DemoWorker]:
    """It says what it does in `log_file`, and is ended at the end."""
    command = [sys.executable, "-m", "deploy.demo_worker", "restructure", "--stream", stream, "--state", str(state)]
    command += ["--bootstrap-servers", bootstrap_servers]
    if settings_file is not None:
        command += ["--settings", str(settings_file)]
    with (
        log_file.open("wb") as log,
        # Ctrl-C goes to the demo alone, which ends the worker.
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            yield DemoWorker(process, log_file, parts)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_ENDS_WITHIN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _end_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _main() -> None:
    from deploy import cli

    threading.Thread(target=_end_with_stdin, daemon=True).start()
    sys.argv = ["palimpsest", *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    _main()
