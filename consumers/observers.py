"""Several observers of the learner's process as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consumers.learner_process import Observer
from consumers.snapshot_commit import CommitReport
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.stream_learner import StepReport, StreamLearner


class Observers:
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

    def turned(self, lag_records: Mapping[Partition, int]) -> None:
        for observer in self._observers:
            observer.turned(lag_records)

    def warned(self, message: str) -> None:
        for observer in self._observers:
            observer.warned(message)


class SilentObserver:
    """Hears and says nothing: the base of observers that care for some of it only."""

    def started(self, learner: StreamLearner, resumed: bool) -> None:
        """Nothing."""

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        """Nothing."""

    def evaluated(self, learner: StreamLearner, report: EvaluationReport) -> None:
        """Nothing."""

    def committed(self, report: CommitReport) -> None:
        """Nothing."""

    def commit_failed(self, error: OSError) -> None:
        """Nothing."""

    def turned(self, lag_records: Mapping[Partition, int]) -> None:
        """Nothing."""

    def warned(self, message: str) -> None:
        """Nothing."""
