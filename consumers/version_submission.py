"""From a learner's snapshot to a waiting registration, and from a receipt to an event: MLflow's side of the learner.

Registering itself is done by a child process with a queue on disk (model_store), so that a slow MLflow, or none at all,
costs the learner nothing but the writing of a small folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

from model_store.registration_queue import Receipt, RegistrationQueue
from model_store.registry import MetricPoint, RegistrationRequest
from pipeline.classifier import Classifier
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.state import Json, StateTree
from pipeline.stream_learner import StreamLearner

# A registration takes a second or two. One that waits for longer than this is told of.
_PATIENCE_SECONDS = 60.0


class RegistrarHandle(Protocol):
    """What is needed of `RegistrarProcess`."""

    def start(self) -> bool:
        """See that it runs; False: it died, and it is too early to try again."""

    def close(self, drain_seconds: float | None = None, goes_on: Callable[[float], bool] = ...) -> int:
        """Let it finish what waits, at most so long and while `goes_on(waited_seconds)`; how many remain."""


class VersionSubmission:
    """The learner process's `Versions`."""

    def __init__(
        self,
        queue: RegistrationQueue,
        process: RegistrarHandle,
        *,
        stream: str,
        state_id: str,
        registered: Callable[[str, str], object],
        warned: Callable[[str], object],
    ) -> None:
        """`process` works on `queue`. `registered(version, run_id)` and `warned(message)` hear of receipts."""
        self._queue = queue
        self._process = process
        self._stream = stream
        self._state_id = state_id
        self._registered = registered
        self._warned = warned
        self._collected: list[Receipt] = []
        self._polled: list[Receipt] = []  # by `holds`, for the next `collect`
        self._oldest: tuple[int, float] | None = None  # the oldest request that waits, and since when we know it
        self._complained = False  # of what waits now
        self._closed = False  # what waits from now on is a later run's

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.close(0.0)

    def prepare(
        self,
        learner: StreamLearner,
        *,
        offsets: Mapping[Partition, int],
        trigger: str,
        since_records: int,
        evaluation: EvaluationReport | None,
    ) -> Callable[[StateTree, str], None] | None:
        """What is to be said of a version of the learner as it is now; the answer queues it, and sees that the
        registrar runs."""
        if learner.learner is None:
            return None
        about = partial(
            RegistrationRequest,
            stream=self._stream,
            state_id=self._state_id,
            offsets=offsets,
            classes=tuple(learner.class_names),
            trigger=trigger,
            servable=Path(),  # the queue gives it its place
            records_trained=learner.records_trained,
            average_accuracy=evaluation.average_accuracy if evaluation else None,
            average_forgetting=evaluation.average_forgetting if evaluation else None,
            worst_class=evaluation.worst_class if evaluation else None,
            metrics=_points(learner, since_records),
            # told by its state alone, so that a start after a kill says the same of the snapshot
            goes_back=learner.is_relearning,
        )
        input_settings = learner.settings.input

        def submit(learner_state: StateTree, snapshot_sha256: str) -> None:
            classifier = Classifier.from_state(learner_state, input_settings)
            request = about(snapshot_sha256=snapshot_sha256)
            submitted = self._queue.submit(request, classifier.save)
            if submitted.dropped is not None:
                self._warned(f"too many versions wait for MLflow: number {submitted.dropped} made room for a newer one")
            self._process.start()

        return submit

    def pinned(self) -> Collection[str]:
        """Snapshots of versions that have a role in the registry, or wait to get one."""
        return self._queue.pinned_sha256()

    def holds(self, snapshot_sha256: str) -> bool:
        """Whether a request of this snapshot waits, or its receipt does."""
        # Requests before receipts: one that is finished in between is found as a receipt.
        waiting = self._queue.waits_for(snapshot_sha256)
        self._polled += self._queue.poll_receipts()
        return waiting or any(receipt.snapshot_sha256 == snapshot_sha256 for receipt in self._polled)

    def _see_to(self, pending: Sequence[int]) -> None:
        """See that the registrar works on what waits, and say once if nothing becomes of it."""
        if not pending:
            self._oldest, self._complained = None, False
            return
        now = time.monotonic()
        if self._oldest is None or self._oldest[0] != pending[0]:
            self._oldest = pending[0], now
        runs = self._process.start()
        if self._complained or (runs and now - self._oldest[1] < _PATIENCE_SECONDS):
            return
        self._complained = True
        why = f"the oldest for more than {_PATIENCE_SECONDS:.0f} s" if runs else "the process that registers them died"
        self._warned(
            f"{len(pending)} versions wait for MLflow, {why} (see {self._queue.folder}/registrar.log); learning goes on"
        )

    def collect(self) -> Sequence[Mapping[str, Json]]:
        """Receipts since the last call, as the data of one event each. Restarts a registrar that died."""
        if not self._closed:
            self._see_to(self._queue.pending_numbers())
        receipts = [*self._polled, *self._queue.poll_receipts()]
        self._polled.clear()
        self._collected += receipts
        events: list[Mapping[str, Json]] = []
        for receipt in receipts:
            if receipt.version is None:
                self._warned(f"a version could not be registered: {receipt.problem}")
                continue
            self._registered(str(receipt.version), receipt.run_id or "")
            events.append(
                {
                    "version": receipt.version,
                    "snapshot_sha256": receipt.snapshot_sha256,
                    "tags": cast(Json, receipt.tags),
                }
            )
        return events

    def acknowledge(self) -> None:
        """Their events are committed: the receipts can go."""
        self._queue.acknowledge(self._collected)
        self._collected.clear()

    def close(self, goes_on: Callable[[float], bool]) -> int:
        """Wait for what waits, while `goes_on(waited_seconds)`; how many remain for a later run."""
        if self._queue.pending_numbers():
            self._process.start()
        self._closed = True
        return self._process.close(goes_on=goes_on)


def _points(learner: StreamLearner, since_records: int) -> tuple[MetricPoint, ...]:
    """The evaluations after `since_records`, as MLflow's metrics; a step is a record consumed."""
    now_ms = time.time_ns() // 1_000_000
    points: list[MetricPoint] = []
    for point in learner.forgetting.points:
        if point.at_records <= since_records:
            continue
        values = {
            "average_accuracy": point.average_accuracy,
            "average_forgetting": point.average_forgetting,
            **{f"class_accuracy/{name}": accuracy for name, accuracy in point.class_accuracies.items()},
        }
        points += [
            MetricPoint(name=name, value=value, step=point.at_records, timestamp_ms=now_ms)
            for name, value in values.items()
            if value is not None
        ]
    return tuple(points)
