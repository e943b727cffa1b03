"""A subject's raw samples leave a state folder: every kept snapshot, and what a replay of the log would bring back."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from consumers.commit_log import CommitLog, Committed
from consumers.events import event_message
from consumers.manifest_facts import ProcessFacts
from consumers.record_source import RecordSource
from consumers.state_checks import check_belongs
from consumers.told_before import Reports
from model_store.fault_points import fault_point
from model_store.manifest import NotWhole
from model_store.offers import OfferStore
from model_store.snapshot import OutboxMessage, Snapshot
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.erasure import erased, named_subject, subject_hex, unknown_rows
from pipeline.evaluation.hold_out import HoldOut
from pipeline.record import Partition
from pipeline.settings import HoldOutSettings
from pipeline.state import Json
from pipeline.user_error import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReport:
    """What one run has removed; a run before it that was killed may have removed more."""

    subject: str  # the keyed hash
    until: Mapping[Partition, int]  # records before these offsets are skipped
    snapshots_rewritten: int
    snapshots_removed: int  # were not whole, and may have held anything
    reservoir_rows: int  # of all snapshots together, as are the next two
    held_out_samples: int
    dead_letters: int  # that waited in an outbox, or had been told from there
    newest_reservoir_rows: int  # of the newest alone: what the learner goes on without, as is the next one
    newest_held_out_samples: int
    sequence: int  # of the snapshot that is the newest now


class SubjectErasure:
    """Makes a state forget a subject's raw samples, in an order that a kill between any two steps leaves whole.

    Nobody else works on the folder meanwhile (`state_lock.exclusive_lock`). Run again after a kill it begins anew and
    ends what was begun: each step finds what is already done done.

    1. Look: is there a whole snapshot, of this stream, branch and log, and does it say whose its rows are? Refusals
       come before anything is claimed or changed.
    2. Claim the branch as a learner does. One that works on this folder all the same, from another machine, can commit
       nothing any more that would bring the old state back.
    3. Where the newest was written but not told, tell its outbox now, as a learner's start does, but no dead letters of
       the subject. The claim stands above its generation and below its sequence, so that a learner after a kill would
       pass it over, rewritten as it is, and start from an older one that is not.
    4. Where the log ends now: the subject's records before that are skipped by whoever replays them, later ones are
       ordinary. (Records of a producer's transaction that is open just now come later.)
    5. Rewrite every kept snapshot, the newest first. From then on the one that a learner starts from has no more of the
       subject, also where this is killed. Dead letters of the subject leave the outboxes.
    6. Remove what is no whole snapshot, and what was left half written or half removed: it may hold raw samples. So
       may what restructurings have offered: their jobs are to be done again.
    7. One more snapshot of the newest, under the new generation, with an event in its outbox; then its commit. So the
       event is told when all is done, and once.

    The bytes of removed files lie on the disk until the file system writes over them.
    """

    def __init__(
        self,
        *,
        store: SnapshotStore,
        source: RecordSource,
        commit_log: CommitLog,
        facts: ProcessFacts,
        reports: Reports | None,
        offers: OfferStore,
    ) -> None:
        """`reports`: of the branch that writes to the stream's topics; None: nothing is told."""
        self._store = store
        self._offers = offers
        self._source = source
        self._commit_log = commit_log
        self._facts = facts
        self._reports = reports

    def erase(self, subject: str, *, unknown_too: bool = False) -> ErasureReport:
        """Numbered as above. `unknown_too`: also rows that may be anybody's, from a release that noted no subjects.

        `UserError` where this state cannot be erased from here; `LearnerFenced`, `BrokerUnavailable`,
        `SourceUnavailable`, `OSError`: run it again.
        """
        # 1.
        seen = self._commit_log.committed()
        found = self._newest(seen)
        self._check(found.snapshot, unknown_too=unknown_too)
        key = _key(found.snapshot, subject)
        # 2.
        committed = self._commit_log.start(known_generation=self._store.highest_generation())
        if committed != seen:  # a learner elsewhere was quicker
            found = self._newest(committed)
            self._check(found.snapshot, unknown_too=unknown_too)
        fault_point("erase.claimed")
        # 3.
        entry, snapshot = found.entry, found.snapshot
        told_since, untold = self._untold(found, committed, subject)
        if committed is None or snapshot.sequence > committed.sequence:
            self._commit_log.commit(self._offsets(snapshot), snapshot.sequence, untold)
            untold = []
        fault_point("erase.caught_up")
        # 4.
        until = self._source.end_offsets()
        # 5.
        report = _Counts()
        newest = report.without(entry, snapshot, subject, key, until, unknown_too=unknown_too)
        newest_rows, newest_samples = report.reservoir_rows, report.held_out_samples
        self._store.rewrite(entry, newest)
        fault_point("erase.newest_rewritten")
        broken = []
        for older in reversed(self._store.entries()):
            if older.number == entry.number:
                continue
            try:
                loaded = self._store.load(older)
            except NotWhole:
                broken.append(older.path)
                continue
            # Rows of unknown subjects are in it only where the newest has none left, or all are to go.
            self._store.rewrite(older, report.without(older, loaded, subject, key, until, unknown_too=True))
            fault_point("erase.rewritten")
        # 6.
        for path in broken:
            self._store.remove(path)
        broken += [folder.path for folder in self._store.broken()]
        self._store.remove_leftovers()
        self._offers.clear()
        fault_point("erase.removed")
        # 7.
        done = ErasureReport(
            subject=subject_hex(key),
            until=until,
            snapshots_rewritten=report.snapshots,
            snapshots_removed=len(broken),
            reservoir_rows=report.reservoir_rows,
            held_out_samples=report.held_out_samples,
            dead_letters=report.dead_letters,
            newest_reservoir_rows=newest_rows,
            newest_held_out_samples=newest_samples,
            sequence=max(newest.sequence, committed.sequence if committed else 0) + 1,
        )
        self._commit(newest, told_since, untold, done)
        return done

    def _newest(self, committed: Committed | None) -> _Newest:
        """The whole snapshot that a learner would go on from. `UserError` where there is none."""
        for entry in self._store.entries():
            check_belongs(entry.facts, stream=self._facts.stream, branch=self._facts.branch, folder=self._store.folder)
        found = self._store.newest_whole(
            lambda entry: committed is None or not committed.supersedes(entry.generation, entry.sequence)
        )
        if found.entry is None or found.snapshot is None:
            raise UserError(
                f"{self._store.folder} holds no whole snapshot to erase from; give the --state of a learner, and "
                "delete this folder where a broken snapshot in it may hold raw samples"
            )
        return _Newest(found.entry, found.snapshot, is_fall_back=bool(found.passed_over))

    def _check(self, snapshot: Snapshot, *, unknown_too: bool) -> None:
        facts = snapshot.facts
        for name, here in (("cluster_id", self._facts.cluster_id), ("topic_id", self._facts.topic_id)):
            if facts.get(name) != here:
                raise UserError(
                    f"this state was learnt from another log than topic {self._facts.topic} is now ({name} "
                    f"{facts.get(name)}, now {here}); point --bootstrap-servers at the old cluster, or go on with the "
                    "new log first: `palimpsest learn --accept-gap`"
                )
        unknown = unknown_rows(snapshot.state)
        if unknown and not unknown_too:
            raise UserError(
                f"of {unknown} rows of the reservoir nobody knows whose they are: an older release stored them; add "
                "--unknown-too to remove these rows too"
            )

    def _untold(
        self, found: _Newest, committed: Committed | None, subject: str
    ) -> tuple[Json, Sequence[OutboxMessage]]:
        """From where a later start has to read back what was told, and what the snapshot has not told; both as at a
        learner's start. No dead letters of the subject."""
        facts = found.snapshot.facts
        apart = found.is_fall_back or committed is None or found.snapshot.sequence != committed.sequence
        since = facts.get("told_since") or (facts.get("report_positions") if apart else None)
        if not apart or self._reports is None:
            return since, []
        told = self._reports.read_back(since, threading.Event())
        return since, [message for message in _without(found.snapshot.outbox, subject) if not told.holds(message)]

    def _offsets(self, snapshot: Snapshot) -> dict[Partition, int]:
        """The snapshot's; the beginning of partitions that came since, none of those that went."""
        beginnings = self._source.beginning_offsets()
        return {partition: snapshot.offsets.get(partition, beginning) for partition, beginning in beginnings.items()}

    def _commit(
        self, newest: Snapshot, told_since: Json, untold: Sequence[OutboxMessage], report: ErasureReport
    ) -> None:
        """Step 7."""
        outbox = list(untold)
        if self._reports is not None:
            outbox.append(self._event(report, cast(int, newest.facts["records_consumed"])))
        snapshot = replace(
            newest,
            generation=self._commit_log.generation,
            sequence=report.sequence,
            offsets=self._offsets(newest),
            facts={**newest.facts, "told_since": told_since},
            outbox=tuple(outbox),
        )
        self._store.write(snapshot)
        fault_point("erase.written")
        self._commit_log.commit(snapshot.offsets, snapshot.sequence, snapshot.outbox)
        fault_point("erase.told")

    def _event(self, report: ErasureReport, records_consumed: int) -> OutboxMessage:
        """It names the subject by its keyed hash: an event is kept for ever, and read by anybody."""
        until: list[Json] = [[p.topic, p.number, offset] for p, offset in sorted(report.until.items())]
        return event_message(
            stream=self._facts.stream,
            branch=self._facts.branch,
            kind="subject_erased",
            key=f"{report.subject}/{report.sequence}",
            data={
                "records_consumed": records_consumed,
                "subject": report.subject,
                "until": until,
                "reservoir_rows": report.reservoir_rows,
                "held_out_samples": report.held_out_samples,
                "dead_letters": report.dead_letters,
                "snapshots_rewritten": report.snapshots_rewritten,
                "snapshots_removed": report.snapshots_removed,
            },
            time_seconds=time.time(),
        )


@dataclass(frozen=True, slots=True)
class _Newest:
    """What a learner would go on from."""

    entry: SnapshotEntry
    snapshot: Snapshot
    is_fall_back: bool  # newer ones are not whole


class _Counts:
    """What was removed so far."""

    def __init__(self) -> None:
        self.snapshots = 0
        self.reservoir_rows = 0
        self.held_out_samples = 0
        self.dead_letters = 0

    def without(
        self,
        entry: SnapshotEntry,
        snapshot: Snapshot,
        subject: str,
        key: int,
        until: Mapping[Partition, int],
        *,
        unknown_too: bool,
    ) -> Snapshot:
        """The snapshot without the subject. It is to become no version: either it has, or it holds what was erased.

        `former_sha256` are the names under which versions know it.
        """
        state, removed = erased(snapshot.state, key, until, unknown_too=unknown_too)
        outbox = _without(snapshot.outbox, subject)
        self.snapshots += 1
        self.reservoir_rows += removed.reservoir_rows
        self.held_out_samples += removed.held_out_samples
        self.dead_letters += len(snapshot.outbox) - len(outbox)
        former = cast("list[Json]", snapshot.facts.get("former_sha256") or [])
        facts = {**snapshot.facts, "version": None, "former_sha256": [*former, entry.sha256]}
        return replace(snapshot, state=state, outbox=outbox, facts=facts)


def _without(outbox: Sequence[OutboxMessage], subject: str) -> tuple[OutboxMessage, ...]:
    return tuple(message for message in outbox if named_subject(message.headers) != subject)


def _key(snapshot: Snapshot, subject: str) -> int:
    """By the salt that the state was made with, which is fixed for it."""
    settings = cast("dict[str, Any]", snapshot.facts["settings"])
    return HoldOut(HoldOutSettings.model_validate(settings["hold_out"])).subject_key(subject)
