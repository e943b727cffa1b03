"""The commit's order: snapshot first, transaction second, pruning last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from consumers.commit_log import BrokerUnavailable, LearnerFenced
from consumers.memory_commit_log import InMemoryCommitLog, InMemoryCommits
from consumers.process_settings import SnapshotSettings
from consumers.snapshot_commit import DiskRefused, SnapshotCommit
from model_store.snapshot import OutboxMessage, Snapshot
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.record import Partition
from tests.consumers.learner_world import FullDisk, UnremovableSnapshots

PARTITION = Partition("t", 0)
MESSAGE = OutboxMessage("t.events", b"key", b"value", (("header", b"1"),))


class LoggedStore(SnapshotStore):
    def __init__(self, folder: Path, log: list[str]) -> None:
        super().__init__(folder)
        self._log = log

    def write(self, snapshot: Snapshot) -> SnapshotEntry:
        self._log.append(f"write {snapshot.sequence}")
        return super().write(snapshot)

    def prune(self, *args: Any, **kwargs: Any) -> list[Path]:
        self._log.append("prune")
        return super().prune(*args, **kwargs)


class LoggedCommitLog(InMemoryCommitLog):
    def __init__(self, commits: InMemoryCommits, log: list[str]) -> None:
        super().__init__(commits, "s", "main", {PARTITION: 0})
        self._log = log

    def commit(self, offsets: Mapping[Partition, int], sequence: int, outbox: Sequence[OutboxMessage]) -> None:
        self._log.append(f"commit {sequence}")
        super().commit(offsets, sequence, outbox)


class Parts:
    def __init__(self, folder: Path, *, speaks: bool = True, store: SnapshotStore | None = None) -> None:
        self.log: list[str] = []
        self.waits: list[float] = []
        self.goes_on = True
        self.commits = InMemoryCommits()
        self.store = store or LoggedStore(folder, self.log)
        self.commit_log = LoggedCommitLog(self.commits, self.log)
        self.commit_log.start()
        self.commit = SnapshotCommit(
            self.store, self.commit_log, settings=SnapshotSettings(keep=2), speaks=speaks, wait=self.wait
        )

    def wait(self, why: str, seconds: float) -> bool:
        self.waits.append(seconds)
        if len(self.waits) == 8:
            self.commits.is_away = False
        return self.goes_on

    def commit_once(self, offset: int = 1) -> Any:
        return self.commit.commit({"number": offset}, {PARTITION: offset}, [MESSAGE], {"a": 1})


def test_state_first_offsets_second(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    report = parts.commit_once()
    assert parts.log == ["write 1", "commit 1", "prune"]
    assert report.entry.number == (1, 1)
    assert report.prune_problem is None
    assert parts.commits.messages == [MESSAGE]
    found = parts.store.newest_whole().snapshot
    assert found is not None
    assert (found.outbox, found.offsets, found.facts) == ((MESSAGE,), {PARTITION: 1}, {"a": 1})


def test_the_newest_are_kept(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    for offset in range(5):
        parts.commit_once(offset)
    assert [entry.sequence for entry in parts.store.entries()] == [4, 5]


def test_a_silent_branch_has_no_outbox(tmp_path: Path) -> None:
    parts = Parts(tmp_path, speaks=False)
    parts.commit_once()
    assert parts.commits.messages == []
    found = parts.store.newest_whole().snapshot
    assert found is not None
    assert found.outbox == ()


def test_nothing_is_told_where_the_snapshot_could_not_be_written(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path)
    parts = Parts(tmp_path, store=disk)
    with pytest.raises(OSError, match="No space"):
        parts.commit_once()
    assert (parts.log, parts.commits.messages, parts.commit.sequence) == ([], [], 0)
    disk.is_full = False
    assert parts.commit_once().entry.sequence == 1


def test_a_pruning_that_fails_is_reported_and_the_commit_stands(tmp_path: Path) -> None:
    parts = Parts(tmp_path, store=UnremovableSnapshots(tmp_path))
    assert isinstance(parts.commit_once().prune_problem, PermissionError)
    assert parts.commits.messages == [MESSAGE]


def test_it_waits_longer_and_longer_and_tells_once(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.commits.is_away = True
    parts.commit_once()
    assert parts.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert parts.log == ["write 1", *["commit 1"] * 9, "prune"]
    assert parts.commits.messages == [MESSAGE]


def test_it_ends_where_there_is_no_more_waiting_and_the_snapshot_stays_to_be_told(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.commits.is_away, parts.goes_on = True, False
    with pytest.raises(BrokerUnavailable):
        parts.commit_once()
    assert [entry.sequence for entry in parts.store.entries()] == [1]


def test_a_fenced_commit_is_not_retried(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    LoggedCommitLog(parts.commits, []).start()
    with pytest.raises(LearnerFenced):
        parts.commit_once()
    assert (parts.waits, parts.commits.messages) == ([], [])


def test_a_socket_that_fails_is_not_taken_for_a_disk_that_does(tmp_path: Path) -> None:
    """After it the outbox may have been told; put into the next snapshot it would be told twice."""
    parts = Parts(tmp_path)

    class BrokenPipes(LoggedCommitLog):
        def commit(self, offsets: Mapping[Partition, int], sequence: int, outbox: Sequence[OutboxMessage]) -> None:
            raise ConnectionResetError(104, "Connection reset by peer")

    parts.commit_log = BrokenPipes(parts.commits, [])
    parts.commit_log.start()
    parts.commit = SnapshotCommit(
        parts.store, parts.commit_log, settings=SnapshotSettings(), speaks=True, wait=parts.wait
    )
    with pytest.raises(ConnectionResetError) as raised:
        parts.commit_once()
    assert not isinstance(raised.value, DiskRefused)
    with pytest.raises(DiskRefused, match="No space"):
        Parts(tmp_path, store=FullDisk(tmp_path)).commit_once()
