"""The commit: a snapshot made durable first, offsets second. ARCHITECTURE.md, "The commit, and the start"."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from consumers.base_snapshots import base_numbers, begun_jobs
from consumers.commit_log import BrokerUnavailable, CommitLog
from consumers.process_settings import SnapshotSettings
from consumers.requested_jobs import needed_numbers
from model_store.fault_points import fault_point
from model_store.snapshot import OutboxMessage, Snapshot
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.record import Partition
from pipeline.state import Json, StateTree


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitReport:
    """One commit that went through."""

    entry: SnapshotEntry
    write_seconds: float
    commit_seconds: float
    copy_seconds: float = 0.0  # the state's, in which learning stood still
    prune_problem: OSError | None = None  # older ones could not be removed; this one is durable and told all the same


class DiskRefused(OSError):
    """The snapshot could not be written, and nothing of it was told: what had to be told may be told with the next one.

    A class of its own, since sockets fail with `OSError` too, at a point where all may have been told.
    """


class SnapshotCommit:
    """Makes state durable and tells the world, in an order that a kill between any two steps leaves whole.

    1. Write the snapshot, its manifest last. A kill before this: the records since the last one are read again.
    2. One transaction, opened only now: the outbox, and the offsets, whose metadata names generation and sequence.
       A kill between 1 and 2: the next start finds a snapshot that is ahead of the committed sequence and sends its
       outbox. The other order would commit offsets whose state does not exist.
    3. Prune older snapshots.
    """

    def __init__(
        self,
        store: SnapshotStore,
        commit_log: CommitLog,
        *,
        settings: SnapshotSettings,
        speaks: bool,
        wait: Callable[[str, float], bool],
        pinned_sha256: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`speaks`: whether this branch writes to the stream's topics; another than `main` keeps its outbox to itself.
        `pinned_sha256()` names snapshots that must not be pruned.

        `wait(why, seconds)` waits while the brokers are away; it answers False where the process is to end instead.
        """
        self._store = store
        self._commit_log = commit_log
        self._settings = settings
        self._pinned_sha256 = pinned_sha256
        self._speaks = speaks
        self._wait = wait
        self.sequence = 0  # of the newest commit: each one has a number of its own, also after a fall-back

    def commit(
        self,
        state: StateTree,
        offsets: Mapping[Partition, int],
        outbox: Sequence[OutboxMessage],
        facts: Mapping[str, Json],
    ) -> CommitReport:
        """Numbered as above.

        Raises `DiskRefused` where step 1 fails (nothing was told); `LearnerFenced` and `OutboxRefused` from step 2, and
        `BrokerUnavailable` where `wait` says so: the next start tells it.
        """
        started = time.perf_counter()
        fault_point("commit.begun")
        snapshot = Snapshot(
            generation=self._commit_log.generation,
            sequence=self.sequence + 1,
            state=state,
            offsets=dict(offsets),
            facts=dict(facts),
            outbox=tuple(outbox) if self._speaks else (),
        )
        # 1.
        try:
            entry = self._store.write(snapshot)
        except OSError as error:
            raise DiskRefused(*error.args) from error
        self.sequence = snapshot.sequence
        fault_point("commit.written")
        written = time.perf_counter()
        # 2.
        self.tell(snapshot)
        fault_point("commit.told")
        told = time.perf_counter()
        # 3.
        prune_problem = None
        try:
            self._store.prune(
                self._settings.keep,
                pinned=self._pinned(),
                pinned_sha256=self._pinned_sha256(),
                max_age_seconds=self._settings.keep_days * 86_400.0,
            )
        except OSError as error:  # no reason to tell the outbox a second time, so not an error of this commit
            prune_problem = error
        fault_point("commit.pruned")
        return CommitReport(
            entry=entry, write_seconds=written - started, commit_seconds=told - written, prune_problem=prune_problem
        )

    def _pinned(self) -> set[tuple[int, int]]:
        """What a job that was begun, one that is asked for, or the next one loads."""
        entries, max_age_seconds = self._store.entries(), self._settings.keep_days * 86_400.0
        bases = base_numbers(entries, self._settings.keep_bases, max_age_seconds)
        jobs = begun_jobs(self._store.folder.parent / "jobs")
        begun = {number for job in jobs for number in (job.parent, job.base)}
        return bases | begun | needed_numbers(entries, max_age_seconds)

    def tell(self, snapshot: Snapshot) -> None:
        """Step 2 alone: also at the start, for a snapshot that a killed process wrote but did not tell."""
        is_last = False
        for attempt in itertools.count():
            try:
                self._commit_log.commit(snapshot.offsets, snapshot.sequence, snapshot.outbox)
                return
            except BrokerUnavailable as error:
                # Whether the brokers have it is not known; the very same call finds out and tells nothing twice. Who is
                # told to end tries once more at once: the brokers may be back since a moment ago.
                if is_last:
                    raise
                pause_seconds = min(0.5 * 2 ** min(attempt, 5), 15.0)
                is_last = not self._wait(f"the commit waits for the brokers: {error}", pause_seconds)
