"""Who hears what the learner's process does, and several of them as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consumers.log_gap import Gap
from consumers.snapshot_commit import CommitReport
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.stream_learner import StepReport, StreamLearner


class Observer:
    """Hears what the learner's process did: metrics, a live line, a test. Each overrides what it cares for.

    Its methods must not raise and not block.
    """

    def started(self, learner: StreamLearner, resumed: bool) -> None:
        """The state is loaded, or begun; the log is being read."""

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        """One step on one batch."""

    def evaluated(self, learner: StreamLearner, report: EvaluationReport) -> None:
        """The hold-outs were evaluated."""

    def committed(self, report: CommitReport) -> None:
        """A snapshot is durable, and told."""

    def commit_failed(self, error: OSError) -> None:
        """A snapshot could not be written; learning goes on."""

    def turned(self, lag_records: Mapping[Partition, int], away_seconds: float | None = None) -> None:
        """The loop has turned. `away_seconds`: for so long the brokers have not answered; the lag is from before."""

    def gap_accepted(self, gap: Gap) -> None:
        """The log has lost records, and learning goes on without them, as somebody has said it should."""

    def adopted(self, learner: StreamLearner, kind: str, expected_seconds: float | None) -> None:
        """The learner goes on with what a restructuring of this kind has made, and learns once more what came since: as
        far as one can tell in so many seconds."""

    def refused(self, kind: str) -> None:
        """The learner goes on without what a restructuring of this kind has made."""

    def warned(self, message: str) -> None:
        """One line for a person. Also from the thread that commits."""


class Observers(Observer):
    """Tells each in turn."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def started(self, learner: StreamLearner, resumed: bool) -> None:
        for observer in self._observers:
            observer.started(learner, resumed)

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        for observer in self._observers:
            observer.stepped(learner, report)

    def evaluated(self, learner: StreamLearner, report: EvaluationReport) -> None:
        for observer in self._observers:
            observer.evaluated(learner, report)

    def committed(self, report: CommitReport) -> None:
        for observer in self._observers:
            observer.committed(report)

    def commit_failed(self, error: OSError) -> None:
        for observer in self._observers:
            observer.commit_failed(error)

    def turned(self, lag_records: Mapping[Partition, int], away_seconds: float | None = None) -> None:
        for observer in self._observers:
            observer.turned(lag_records, away_seconds)

    def gap_accepted(self, gap: Gap) -> None:
        for observer in self._observers:
            observer.gap_accepted(gap)

    def adopted(self, learner: StreamLearner, kind: str, expected_seconds: float | None) -> None:
        for observer in self._observers:
            observer.adopted(learner, kind, expected_seconds)

    def refused(self, kind: str) -> None:
        for observer in self._observers:
            observer.refused(kind)

    def warned(self, message: str) -> None:
        for observer in self._observers:
            observer.warned(message)
