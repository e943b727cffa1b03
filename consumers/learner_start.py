"""The start: from a folder of snapshots and a group's commits to where a learner goes on. ARCHITECTURE.md."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from consumers.commit_log import CommitLog, Committed, transactional_id
from consumers.log_gap import Gap, LogGap, find_gaps
from consumers.manifest_facts import ProcessFacts, last_records_in
from consumers.record_source import RecordSource
from consumers.snapshot_commit import SnapshotCommit
from consumers.state_checks import check_belongs, check_settings
from consumers.told_before import Reports, ToldBefore
from model_store.fault_points import fault_point
from model_store.snapshot import OutboxMessage, Snapshot
from model_store.snapshot_store import Found, PassedOver, SnapshotEntry, SnapshotStore
from pipeline.record import Partition
from pipeline.settings_section import fixed_values
from pipeline.state import Json
from pipeline.stream_learner import StreamLearner
from pipeline.user_error import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Where a learner goes on from. `entry` None: there was no snapshot, nothing is learnt yet."""

    offsets: Mapping[Partition, int]
    entry: SnapshotEntry | None = None
    last_records: Mapping[Partition, tuple[int, str]] = field(default_factory=dict)
    told_before: ToldBefore = field(default_factory=ToldBefore)
    told_since: Json = None  # positions from which `told_before` was read; None: there was no fall-back
    untold: tuple[OutboxMessage, ...] = ()  # has to go with the next commit
    gaps: tuple[Gap, ...] = ()  # accepted ones: not yet recorded as a decision, and not yet told
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def facts(self) -> Mapping[str, Json]:
        """The snapshot's; {} where there was none."""
        return {} if self.entry is None else self.entry.facts


class LearnerStart:
    """Loads the state into a learner and claims the branch, in an order that a kill between any two steps leaves whole.

    1. Load the newest whole snapshot, by (generation, sequence), never by offsets. Ask whether it belongs to this
       stream and fits these settings, whether the log goes on where it ended, and where there is none, whether one was
       committed: a mistyped --state must not fence another learner.
    2. Claim the branch: an older learner that is still alive is fenced, the generation grows by one.
    3. Where that one had committed meanwhile, once more as 1.
    4. Where it was written but not told, tell its outbox now. Where it is older than the commit (newer ones were lost),
       read back what was told since: records are learnt a second time, with the decisions of the first, and told once.
    5. Seek to *its* offsets, past the gaps that are accepted.
    """

    def __init__(
        self,
        *,
        learner: StreamLearner,
        source: RecordSource,
        commit_log: CommitLog,
        store: SnapshotStore,
        facts: ProcessFacts,
        committer: SnapshotCommit,
        reports: Reports | None,
        accept_gap: bool = False,
    ) -> None:
        self._learner = learner
        self._source = source
        self._commit_log = commit_log
        self._store = store
        self._facts = facts
        self._committer = committer
        self._reports = reports
        self._accept_gap = accept_gap

    def begin(self, stop: threading.Event) -> Beginning:
        """Numbered as above. `stop` ends a wait for brokers.

        `UserError` where this state cannot go on here, `LogGap` where the log does not go on from it; `LearnerFenced`,
        `BrokerUnavailable`, `SourceUnavailable`.
        """
        # 1.
        seen = self._commit_log.committed()
        entries = self._store.entries()
        if entries:
            self._check_state(entries[-1].facts)
        found = self._find(seen)
        gaps = self._gaps(found.snapshot, stop)
        self._load(found)
        fault_point("start.found")
        # 2.
        committed = self._commit_log.start(known_generation=self._store.highest_generation(), stop=stop)
        if self._reports is not None:
            self._reports.open()
        # 3.
        entries_now = self._store.entries()
        if committed != seen or [entry.number for entry in entries_now] != [entry.number for entry in entries]:
            found = self._find(committed)
            gaps = self._gaps(found.snapshot, stop)
            self._load(found)
        self._remove_superseded(entries_now, committed)
        fault_point("start.loaded")
        if found.snapshot is None or found.entry is None:
            beginning = Beginning(offsets=dict(self._source.beginning_offsets()), passed_over=found.passed_over)
        else:
            beginning = self._go_on(found.snapshot, found.entry, found.passed_over, gaps, committed, stop)
        # 5.
        self._source.seek(beginning.offsets)
        fault_point("start.sought")
        return beginning

    def _find(self, committed: Committed | None) -> Found:
        """The newest whole snapshot, where a learner may go on from it, or begin where there is none. Changes nothing.

        Passed over is what a learner wrote after it had been replaced (`Committed.supersedes`).
        Raises `UserError` where a learner may not go on.
        """
        found = self._store.newest_whole(
            lambda entry: committed is None or not committed.supersedes(entry.generation, entry.sequence)
        )
        if found.snapshot is not None:
            self._check_state(found.snapshot.facts)
        elif committed is not None and committed.sequence > 0:
            group = transactional_id(self._facts.stream, self._facts.branch)
            raise UserError(
                f"branch {self._facts.branch!r} of stream {self._facts.stream!r} has committed snapshot "
                f"{committed.sequence}, but {self._store.folder} holds none that is whole; give the --state it was "
                "learnt with, or another --branch, or, to start over in an empty --state, end its learner and delete "
                f"its group: `kafka-consumer-groups.sh --bootstrap-server HOST:PORT --delete --group {group}`"
            )
        elif committed is None and found.passed_over:
            raise UserError(
                f"branch {self._facts.branch!r} of stream {self._facts.stream!r} has committed snapshots before, but "
                f"{self._store.folder} holds none that is whole; give another --state to start over, or another "
                "--branch"
            )
        return found

    def _check_state(self, facts: Mapping[str, Json]) -> None:
        check_belongs(facts, stream=self._facts.stream, branch=self._facts.branch, folder=self._store.folder)
        check_settings(facts, fixed_values(self._learner.settings))

    def _gaps(self, snapshot: Snapshot | None, stop: threading.Event) -> tuple[Gap, ...]:
        """The gaps to be borne: by this call's leave, or since they were accepted before, by a learner whose snapshots
        are lost. Raises `LogGap`."""
        if snapshot is None:
            return ()
        gaps = find_gaps(
            snapshot.facts,
            self._source,
            snapshot.offsets,
            cluster_id=self._facts.cluster_id,
            topic_id=self._facts.topic_id,
        )
        if gaps and not self._accept_gap:
            told = ToldBefore()
            if self._reports is not None:
                told = self._reports.read_back(snapshot.facts.get("report_positions"), stop)
            if not all(tuple(gap.as_json) in told.gaps for gap in gaps):
                raise LogGap(gaps)
        return tuple(gaps)

    def _remove_superseded(self, entries: Sequence[SnapshotEntry], committed: Committed | None) -> None:
        """Or each round of a crash loop would leave one, which stands among the newest and is never gone on from."""
        for entry in entries:
            if committed is not None and committed.supersedes(entry.generation, entry.sequence):
                with contextlib.suppress(OSError):  # on a disk that takes no change it harms nobody
                    self._store.remove(entry.path)

    def _load(self, found: Found) -> None:
        """Raises `UserError` where the state does not fit the settings."""
        if found.snapshot is not None:
            self._learner.load_state(found.snapshot.state)

    def _go_on(
        self,
        snapshot: Snapshot,
        entry: SnapshotEntry,
        passed_over: tuple[PassedOver, ...],
        gaps: tuple[Gap, ...],
        committed: Committed | None,
        stop: threading.Event,
    ) -> Beginning:
        # 4.
        facts = snapshot.facts
        committed_sequence = None if committed is None else committed.sequence
        self._committer.sequence = max(snapshot.sequence, committed_sequence or 0)
        apart = bool(passed_over) or snapshot.sequence != committed_sequence
        # A learner that fell back and died before it came to where it had fallen from leaves its successor the rest.
        told_since = facts.get("told_since") or (facts.get("report_positions") if apart else None)
        told_before, untold = ToldBefore(), []
        if told_since and self._reports is not None:
            told_before = self._reports.read_back(told_since, stop)
            told_before.forget_dead_letters(gaps)
            self._learner.obey(told_before.decisions)
        else:
            told_since = None
        beginnings = self._source.beginning_offsets()  # partitions that came since are read from their beginning
        known_offsets = {partition: offset for partition, offset in snapshot.offsets.items() if partition in beginnings}
        if apart:
            untold = [message for message in snapshot.outbox if not told_before.holds(message)]
            if snapshot.sequence > (committed_sequence or 0):
                self._committer.tell(replace(snapshot, offsets=known_offsets, outbox=tuple(untold)))
                untold = []
        fault_point("start.told")
        offsets = {**beginnings, **known_offsets}
        last = last_records_in(facts)
        for gap in gaps:
            offsets[gap.partition] = gap.next_offset
            last.pop(gap.partition, None)  # it lies there no more, or another one does
        return Beginning(
            offsets=offsets,
            entry=entry,
            last_records={p: record for p, record in last.items() if p in beginnings},
            told_before=told_before,
            told_since=told_since,
            untold=tuple(untold),
            gaps=gaps,
            passed_over=passed_over,
        )
