"""What makes versions of a learner's snapshots, seen from the learner: a contract that knows no registry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.state import Json, StateTree
from pipeline.stream_learner import StreamLearner


class Versions(Protocol):
    """Takes what is to become a version; returns at once. `version_submission.VersionSubmission` is one."""

    def prepare(
        self,
        learner: StreamLearner,
        *,
        offsets: Mapping[Partition, int],
        trigger: str,
        since_records: int,
        evaluation: EvaluationReport | None,
    ) -> Callable[[StateTree, str], None] | None:
        """Note what is to be said of a version of the learner as it is now; of its history what came after
        `since_records` is new. None: nothing was learnt yet.

        The answer is called with a copy of the learner's state (a snapshot's `state["learner"]`), once that is durable,
        and the snapshot's SHA-256, by the thread that commits; it raises `OSError`. Nothing else of this object is
        called meanwhile.
        """

    def holds(self, snapshot_sha256: str) -> bool:
        """Whether a version of this snapshot waits already, or was made and is still to be told."""

    def collect(self) -> Sequence[Mapping[str, Json]]:
        """What was registered since last asked: one event's data each."""

    def acknowledge(self) -> None:
        """What was collected before is committed: it need not be told again."""

    def pinned(self) -> Collection[str]:
        """SHA-256 of each snapshot that must be kept, since a version in a role was made of it, or will be."""

    def close(self, goes_on: Callable[[float], bool]) -> int:
        """Wait for what is waiting, as long as something becomes of it and `goes_on(waited_seconds)`, which is asked
        again and again; how many remain for a later run."""
