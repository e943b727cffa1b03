"""The commit log without Kafka."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from consumers.commit_log import BrokerUnavailable, CommitLog, Committed, LearnerFenced, transactional_id
from model_store.snapshot import OutboxMessage
from pipeline.record import Partition


class InMemoryCommits:
    """What the brokers keep: committed offsets of each group, who may write to it, and the messages that were told."""

    def __init__(self) -> None:
        self.committed: dict[str, Committed] = {}
        self.epochs: dict[str, int] = {}
        self.messages: list[OutboxMessage] = []
        self.is_away = False  # while set, nothing goes through


class InMemoryCommitLog(CommitLog):
    """Several of these on the same `InMemoryCommits` are as several learners on the same brokers."""

    def __init__(self, commits: InMemoryCommits, stream: str, branch: str, beginnings: Mapping[Partition, int]) -> None:
        self._commits = commits
        self._group = transactional_id(stream, branch)
        self._beginnings = dict(beginnings)
        self._epoch = 0
        self._last: Committed | None = None
        self._own_sequence: int | None = None  # of the last commit() that went through

    @property
    def generation(self) -> int:
        assert self._last is not None, "start() first"
        return self._last.generation

    def committed(self) -> Committed | None:
        if self._commits.is_away:
            raise BrokerUnavailable("the commits in memory are away")
        return self._commits.committed.get(self._group)

    def start(self, *, known_generation: int = 0, stop: threading.Event | None = None) -> Committed | None:
        if stop is not None and stop.is_set():
            raise BrokerUnavailable(f"stopped before {self._group} was claimed")
        if self._commits.is_away:
            raise BrokerUnavailable("the commits in memory are away")
        # 1.
        self._epoch = self._commits.epochs.get(self._group, 0) + 1
        self._commits.epochs[self._group] = self._epoch
        # 2.
        before = self._commits.committed.get(self._group)
        # 3.
        self._write(
            Committed(
                offsets={**self._beginnings, **(before.offsets if before else {})},
                generation=max(before.generation if before else 0, known_generation) + 1,
                sequence=before.sequence if before else 0,
            ),
            (),
        )
        return before

    def commit(self, offsets: Mapping[Partition, int], sequence: int, outbox: Sequence[OutboxMessage]) -> None:
        assert self._last is not None, "start() first"
        if sequence == self._own_sequence:
            return
        assert sequence > self._last.sequence, f"sequence {sequence} is not above {self._last.sequence}"
        self._write(Committed(offsets=dict(offsets), generation=self.generation, sequence=sequence), outbox)
        self._own_sequence = sequence

    def heartbeat(self) -> None:
        assert self._last is not None, "start() first"
        self._write(self._last, ())

    def _write(self, committed: Committed, outbox: Sequence[OutboxMessage]) -> None:
        if self._commits.epochs.get(self._group) != self._epoch:
            raise LearnerFenced(f"a newer learner has taken over {self._group}")
        if self._commits.is_away:
            raise BrokerUnavailable("the commits in memory are away")
        self._commits.messages.extend(outbox)
        self._commits.committed[self._group] = committed
        self._last = committed

    def close(self) -> None:
        """Nothing to let go of."""
