"""The learner's hold on the registrar: started as a child process, restarted where it died, waited for at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model_store.child_process import ChildProcess
from model_store.registration_queue import RegistrationQueue
from model_store.tracking_uri import check_tracking_uri


class RegistrarProcess:
    """`python -m model_store.registrar` on a queue. It ends with this process, also where this one is killed."""

    def __init__(self, queue: RegistrationQueue, tracking_uri: str, *, drain_seconds: float, log_file: Path) -> None:
        """`log_file`: where its stderr goes, appended. `UserError` for a tracking URI that MLflow cannot use."""
        check_tracking_uri(tracking_uri)
        self._queue = queue
        self._drain_seconds = drain_seconds
        arguments = ["--queue", str(queue.folder.absolute()), "--tracking-uri", tracking_uri]
        self._child = ChildProcess(
            "model_store.registrar", [*arguments, "--drain-seconds", str(drain_seconds)], log_file=log_file
        )

    @property
    def alive(self) -> bool:
        return self._child.alive

    @property
    def process_id(self) -> int | None:
        return self._child.process_id

    @property
    def starts(self) -> int:
        return self._child.starts

    def start(self) -> bool:
        """As `ChildProcess.start`."""
        return self._child.start()

    def close(
        self, drain_seconds: float | None = None, goes_on: Callable[[float], bool] = lambda _waited_seconds: True
    ) -> int:
        """Let it finish what waits, at most so long (default: that of the start), and while `goes_on(waited_seconds)`;
        how many remain for a later run. The queue and MLflow stand its end at any point."""
        seconds = self._drain_seconds if drain_seconds is None else min(drain_seconds, self._drain_seconds)
        self._child.close(seconds, goes_on)
        return len(self._queue.pending_numbers())
