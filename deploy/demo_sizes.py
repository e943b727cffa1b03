"""How large the demo's network was in the course of the stream: it grows and is folded back."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from consumers.observers import Observer
from pipeline.stream_learner import StepReport, StreamLearner


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSize:
    """From this record on, until the next one."""

    after: str  # what made the network so: "begin", "new columns", or the kind of job that was adopted
    records: int  # consumed by then
    sub_modules: int
    parameters: int


class NetworkSizes(Observer):
    """The first network, and every one that an adoption or more columns have made of it."""

    def __init__(self) -> None:
        self.over_time: list[NetworkSize] = []

    @property
    def as_json(self) -> list[dict[str, object]]:
        return [asdict(size) for size in self.over_time]

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        """What is learnt once more was noted before."""
        if not learner.is_relearning:
            self._note(learner, "new columns" if self.over_time else "begin", only_if_changed=True)

    def adopted(self, learner: StreamLearner, kind: str, expected_seconds: float | None) -> None:
        """Noted in any case: a consolidation of a single network makes one as large."""
        self._note(learner, kind)

    def _note(self, learner: StreamLearner, after: str, *, only_if_changed: bool = False) -> None:
        network = learner.learner
        if network is None:
            return
        size = NetworkSize(
            after=after,
            records=learner.records_consumed,
            sub_modules=network.sub_modules_count,
            parameters=network.parameters_count,
        )
        newest = self.over_time[-1] if self.over_time else None
        is_same = newest is not None and (newest.sub_modules, newest.parameters) == (size.sub_modules, size.parameters)
        if not (only_if_changed and is_same):
            self.over_time.append(size)
