"""GET /status: what the learner does at this moment, for a person who asks, the learner's page and the terminal.

    curl -s http://127.0.0.1:9095/status
    {"stream": "digits", "branch": "main", "state": "learning", "records_consumed": 8210, "lag_records": 120, ...}

Whoever asks reads what the training thread left at its last step, and never waits for it, nor it for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import cast

from consumers.http_server import HttpAnswer, HttpRequest, Route
from consumers.observers import Observer
from consumers.process_settings import SnapshotSettings
from consumers.snapshot_commit import CommitReport
from consumers.status_answer import (
    NetworkFigures,
    RegisteredVersion,
    SnapshotFigures,
    State,
    StatusAnswer,
    WorstClass,
)
from model_store.snapshot_store import SnapshotEntry
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.stream_learner import StepReport, StreamLearner

# The rate is that of the newest so many seconds; marks of it are set so far apart.
_RATE_SECONDS = 10.0
_MARK_SECONDS = 0.5
# An update of a large network may take longer than that: the mark before counts for so long.
_SLOW_STEP_SECONDS = 120.0
# The log has given nothing for so long: a poll or two may come back empty in the midst of a stream.
_IDLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the training thread has told so far; never changed, only replaced. Moments are monotonic, 0 before any."""

    is_started: bool = False
    records: int = 0
    high_water: int = 0
    classes: int = 0
    marks: tuple[tuple[float, int], ...] = ()  # (moment, records consumed), oldest first
    stepped_at: float = 0.0
    looked_at: float = 0.0  # when the log was last asked for records
    lag_records: int | None = None
    pending_records: int = 0  # read, and not learnt before they are a batch or the stream rests
    is_away: bool = False  # the brokers do not answer
    newest_event_time: float | None = None  # Unix seconds
    prequential_accuracy: float | None = None
    evaluation: EvaluationReport | None = None
    snapshot: SnapshotFigures | None = None
    records_at_snapshot: int = 0
    snapshot_begun_at: float = 0.0
    network: NetworkFigures | None = None
    caught_up_at: float | None = None  # as was expected
    registered: RegisteredVersion | None = None
    dead_letters: int = 0


class LearnerStatus(Observer):
    """Hears what the learner's process did, in its training thread; any thread may ask `answer`."""

    def __init__(self, settings: SnapshotSettings, *, stream: str, branch: str, device: str) -> None:
        """`device`: what it learns on, in words."""
        self._settings = settings
        self._stream, self._branch, self._device = stream, branch, device
        self._release = version("palimpsest")
        self._started_at = time.time()
        self._waiting: Callable[[], int] = lambda: 0
        self._learner: StreamLearner | None = None  # for the training thread
        self._seen = _Seen()

    # -- who asks --------------------------------------------------------------------------------------------------

    def answer(self) -> StatusAnswer:
        """As it is now. Waits for nothing."""
        seen, now, moment = self._seen, time.time(), time.monotonic()
        rate = _rate(seen, moment)
        report, event_time = seen.evaluation, seen.newest_event_time
        return StatusAnswer(
            stream=self._stream,
            branch=self._branch,
            palimpsest=self._release,
            state=_state(seen),
            time=now,
            started_at=self._started_at,
            device=self._device,
            records_consumed=seen.records if seen.is_started else None,
            records_per_second=rate,
            lag_records=seen.lag_records,
            event_lag_seconds=None if event_time is None else max(0.0, now - event_time),
            classes=seen.classes if seen.is_started else None,
            prequential_accuracy=_finite(seen.prequential_accuracy),
            average_accuracy=None if report is None else _finite(report.average_accuracy),
            average_forgetting=None if report is None else _finite(report.average_forgetting),
            backward_transfer=None if report is None else _finite(report.backward_transfer),
            worst_class=None if report is None else _worst_class(report),
            evaluated_at_records=None if report is None else report.at_records,
            snapshot=seen.snapshot,
            next_snapshot_seconds=self._next_snapshot(seen, moment, rate),
            network=seen.network,
            relearning_records=max(0, seen.high_water - seen.records),
            relearning_seconds=_seconds_left(seen, moment),
            registered_version=seen.registered,
            dead_letters=seen.dead_letters,
            registrations_waiting=self._registrations_waiting(),
        )

    @property
    def routes(self) -> Mapping[str, Mapping[str, Route]]:
        """For an HTTP server."""
        return {"/status": {"GET": self._get}}

    def _get(self, _: HttpRequest) -> HttpAnswer:
        body = self.answer().model_dump_json().encode() + b"\n"
        headers = {"Cache-Control": "no-store"}
        return HttpAnswer(status=200, content_type="application/json", body=body, headers=headers)

    def _registrations_waiting(self) -> int | None:
        """A disk that does not answer the one question hides no other answer, and ends no thread that asks."""
        try:
            return self._waiting()
        except OSError:
            return None

    def _next_snapshot(self, seen: _Seen, moment: float, rate: float | None) -> float | None:
        """By time, or by records at the present rate, whichever comes first."""
        learnt = seen.records - seen.records_at_snapshot
        if not seen.is_started or learnt == 0:
            return None
        left = self._settings.every_seconds - (moment - seen.snapshot_begun_at)
        if self._settings.every_records is not None and rate:
            left = min(left, (self._settings.every_records - learnt) / rate)
        return max(0.0, left)

    # -- Observer, by the training thread alone ----------------------------------------------------------------------

    def watch_registrations(self, waiting: Callable[[], int]) -> None:
        """`waiting()` is asked at each answer, by whoever asks."""
        self._waiting = waiting

    def started(self, learner: StreamLearner, resumed: bool) -> None:
        self._learner = learner
        moment = time.monotonic()
        seen = replace(
            self._seen,
            is_started=True,
            stepped_at=moment,
            snapshot_begun_at=self._seen.snapshot_begun_at or moment,  # an accepted gap is committed before this
            records_at_snapshot=learner.records_consumed,
            evaluation=learner.forgetting.newest_report(),
        )
        self._seen = _as_it_stands(seen, learner, moment)

    def resumed_from(self, entry: SnapshotEntry) -> None:
        """The snapshot that it goes on from."""
        if self._seen.snapshot is None:
            self._seen = replace(self._seen, snapshot=_snapshot(entry))

    def turned(self, lag_records: Mapping[Partition, int], away_seconds: float | None = None) -> None:
        """Without a lag it waits for a commit: nothing says then that the stream is idle."""
        if away_seconds is not None:
            self._seen = replace(self._seen, is_away=True, lag_records=None)
        elif lag_records:
            self._seen = replace(
                self._seen,
                is_away=False,
                looked_at=time.monotonic(),
                lag_records=sum(lag_records.values()),
                pending_records=0 if self._learner is None else self._learner.assembler.pending_records,
            )

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        seen, moment, batch = self._seen, time.monotonic(), report.batch
        marks = seen.marks
        if not marks or moment - marks[-1][0] >= _MARK_SECONDS:
            old = [mark for mark in marks if _RATE_SECONDS < moment - mark[0] <= _SLOW_STEP_SECONDS]
            recent = [mark for mark in marks if moment - mark[0] <= _RATE_SECONDS]
            marks = (*old[-1:], *recent, (moment, learner.records_consumed))
        classes = len(learner.class_columns)
        network = seen.network
        if network is None or classes != seen.classes:  # a class more may be some columns more
            network = _network(learner)
        event_time = batch.newest_event_time_seconds
        told_before = learner.records_consumed <= learner.high_water
        self._seen = replace(
            seen,
            records=learner.records_consumed,
            high_water=learner.high_water,
            classes=classes,
            marks=marks,
            stepped_at=moment,
            newest_event_time=seen.newest_event_time if event_time is None else event_time,
            prequential_accuracy=learner.prequential.accuracy,
            network=network,
            dead_letters=seen.dead_letters + (0 if told_before else len(batch.dead)),
        )

    def evaluated(self, learner: StreamLearner, report: EvaluationReport) -> None:
        self._seen = replace(self._seen, evaluation=report)

    def committed(self, report: CommitReport) -> None:
        seconds = report.copy_seconds + report.write_seconds + report.commit_seconds
        self._seen = replace(
            self._seen,
            snapshot=_snapshot(report.entry),
            records_at_snapshot=cast(int, report.entry.facts["records_consumed"]),
            snapshot_begun_at=time.monotonic() - seconds,
        )

    def adopted(self, learner: StreamLearner, kind: str, expected_seconds: float | None) -> None:
        moment = time.monotonic()
        seen = replace(
            self._seen,
            evaluation=learner.forgetting.newest_report(),
            caught_up_at=None if expected_seconds is None else moment + expected_seconds,
        )
        self._seen = _as_it_stands(seen, learner, moment)

    def registered(self, version_name: str, run_id: str) -> None:
        """The newest version made of this learner."""
        self._seen = replace(self._seen, registered=RegisteredVersion(version=version_name, run_id=run_id))


def _as_it_stands(seen: _Seen, learner: StreamLearner, moment: float) -> _Seen:
    """Where the learner has got to by another way than a step; the rate counts from there."""
    return replace(
        seen,
        records=learner.records_consumed,
        high_water=learner.high_water,
        classes=len(learner.class_columns),
        marks=((moment, learner.records_consumed),),
        prequential_accuracy=learner.prequential.accuracy,
        network=_network(learner),
    )


def _state(seen: _Seen) -> State:
    """Idle by what the loop saw, not by the clock: one update may take longer than a lull. And only once all that came
    is learnt: people wait for it.
    """
    if not seen.is_started:
        return "starting"
    if seen.is_away:
        return "away"
    if seen.records < seen.high_water:
        return "relearning"
    has_learnt_all = not seen.lag_records and not seen.pending_records
    return "idle" if has_learnt_all and seen.looked_at - seen.stepped_at >= _IDLE_SECONDS else "learning"


def _rate(seen: _Seen, moment: float) -> float | None:
    if not seen.marks:
        return None
    pauses = [after[0] - before[0] for before, after in zip(seen.marks, seen.marks[1:], strict=False)]
    if moment - seen.stepped_at >= max(_RATE_SECONDS, 2 * max(pauses, default=0.0)):
        return 0.0
    since = moment - _RATE_SECONDS
    before = seen.marks[:-1]  # than the newest one, from which on nothing was learnt where steps are slow
    began, records = next((mark for mark in reversed(before) if mark[0] <= since), seen.marks[0])
    seconds = moment - began
    return (seen.records - records) / seconds if seconds > 0 else 0.0


def _seconds_left(seen: _Seen, moment: float) -> float | None:
    if seen.records >= seen.high_water or seen.caught_up_at is None:
        return None
    return max(0.0, seen.caught_up_at - moment)


def _worst_class(report: EvaluationReport) -> WorstClass | None:
    for entry in report.classes:
        if entry.name == report.worst_class:
            return WorstClass(name=entry.name, accuracy=entry.accuracy, forgetting=entry.forgetting, n=entry.n)
    return None


def _network(learner: StreamLearner) -> NetworkFigures | None:
    network = learner.learner
    if network is None:
        return None
    return NetworkFigures(parameters=network.parameters_count, sub_modules=network.sub_modules_count)


def _snapshot(entry: SnapshotEntry) -> SnapshotFigures:
    written_at = entry.manifest.written.timestamp()
    return SnapshotFigures(generation=entry.generation, sequence=entry.sequence, time=written_at)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
