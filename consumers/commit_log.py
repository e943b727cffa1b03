"""The contract of the commit: offsets and outbox in one transaction, and one learner at a time. ARCHITECTURE.md."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from model_store.snapshot import OutboxMessage
from pipeline.record import Partition

_METADATA = re.compile(r"palimpsest/1 generation=(\d+) sequence=(\d+)")


class LearnerFenced(RuntimeError):
    """A newer learner of this stream and branch has taken over. This one must end and write nothing more."""


class BrokerUnavailable(RuntimeError):
    """The brokers did not take the commit in time, or a stop ended the wait; whether they have it is not known.

    Make the very same call again (it is found out then, and nothing is told twice), or end: the next start does so too.
    """


class OutboxRefused(RuntimeError):
    """The brokers will never take this message, such as one that is too large for its topic. Nothing was committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What the last commit says: `offsets` are the next to be read, `sequence` is 0 before the first snapshot."""

    offsets: Mapping[Partition, int] = field(default_factory=dict)
    generation: int
    sequence: int

    @property
    def metadata(self) -> str:
        """What stands beside each offset, for us and for whoever looks at the group with Kafka's own tools."""
        return f"palimpsest/1 generation={self.generation} sequence={self.sequence}"

    def supersedes(self, generation: int, sequence: int) -> bool:
        """Whether the writer of this snapshot had been replaced when it wrote it, and its successor went on without it.

        Then it stands above the committed sequence, under a generation below the committed one. (One whose writer was
        killed before it told has the committed generation. Where the successor was killed too, right after its claim,
        going on from the one before costs some learning and loses nothing.) Not where no sequence is committed: the
        brokers forgot the group, and the successor's claim has none to go on from.
        """
        return generation < self.generation and 0 < self.sequence < sequence


def parse_metadata(metadata: str | None) -> tuple[int, int] | None:
    """(generation, sequence), or None where another tool has written the offsets."""
    match = _METADATA.fullmatch(metadata or "")
    return None if match is None else (int(match[1]), int(match[2]))


def transactional_id(stream: str, branch: str) -> str:
    """The learner's transactional id, which is also the name of its group."""
    return f"palimpsest.{stream}.{branch}.learner"


class CommitLog(ABC):
    """Where a learner's commits go. Not thread-safe: one thread at a time, whichever it is."""

    @property
    @abstractmethod
    def generation(self) -> int:
        """Of this learner; from `start` on."""

    @abstractmethod
    def committed(self) -> Committed | None:
        """What is committed, whoever did it; None: nothing. A look: nobody is fenced, and nothing claimed.

        Raises `BrokerUnavailable`.
        """

    @abstractmethod
    def start(self, *, known_generation: int = 0, stop: threading.Event | None = None) -> Committed | None:
        """Become the learner of this stream and branch. Returns what was committed before; None: nothing.

        1. Fence an older learner that is still alive, and let its open transaction come to an end.
        2. Read the committed offsets and their metadata.
        3. Claim: commit the same offsets with generation + 1; where there are none, each partition's beginning with
           sequence 0.

        `known_generation`: of the newest snapshot. Brokers forget the offsets of a group that was idle for a week
        (`offsets.retention.minutes`), and a generation must never come twice.
        `stop` ends a wait for brokers within about a second, with `BrokerUnavailable`: as a kill would, so that a claim
        under way may still go through.
        Raises `BrokerUnavailable`, and `LearnerFenced` where yet another learner started meanwhile.
        """

    @abstractmethod
    def commit(self, offsets: Mapping[Partition, int], sequence: int, outbox: Sequence[OutboxMessage]) -> None:
        """The outbox and the offsets in one transaction that is opened only now: readers see all of it or none.

        `sequence` is above every one that was committed, also above that of `start`'s answer: after a fall-back to an
        older snapshot too. The same one as in the call before means the same call once more, which tells nothing twice.
        Raises `LearnerFenced`, `BrokerUnavailable` and `OutboxRefused`.
        """

    @abstractmethod
    def heartbeat(self) -> None:
        """Commit once more what is committed: so a fenced learner notices, and idle offsets do not expire.

        Raises as `commit`.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the brokers; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
