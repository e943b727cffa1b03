"""When a learner's state is made durable and told: the outbox, and the commits beside the training thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

from consumers.commit_log import BrokerUnavailable, CommitLog
from consumers.commit_thread import Commits, CommitThread
from consumers.events import event_message
from consumers.learner_start import Beginning
from consumers.manifest_facts import ProcessFacts, manifest_facts, settings_facts
from consumers.observers import Observer
from consumers.outbox import Outbox
from consumers.process_settings import RegistrySettings, SnapshotSettings, StreamSettings
from consumers.record_source import record_checksum
from consumers.snapshot_commit import CommitReport, DiskRefused, SnapshotCommit
from consumers.told_before import Reports, ToldBefore
from consumers.topics import MAIN_BRANCH
from consumers.versions import Versions
from model_store.snapshot import OutboxMessage
from model_store.snapshot_store import SnapshotStore
from pipeline.micro_batch import MicroBatch
from pipeline.record import Partition, Record
from pipeline.state import Json, StateTree
from pipeline.stream_learner import StreamLearner

# A disk that could not take a snapshot is tried again after this, however urgent it is: each try costs a copy of the
# state, and an outbox that stays full would ask for one after every update.
_DISK_RETRY_SECONDS = 5.0
# A commit that is under way for longer than this is worth a line, again and again.
_SLOW_COMMIT_SECONDS = 60.0
# A snapshot of a certain moment is worth so long a wait: a local disk and brokers that are there take a tenth of it.
_WANTED_SNAPSHOT_SECONDS = 10.0
# Short enough for a stop to be heard within any supervisor's patience.
_WAIT_TICK_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class _Due:
    """From when on the next snapshot and the next version are counted."""

    at_once: bool = False
    snapshot_at: float = 0.0  # monotonic
    records_at_commit: int = 0
    records_at_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingCommit:
    """A commit that is under way: all that it needs, copied at a batch boundary."""

    state: StateTree
    offsets: Mapping[Partition, int]
    messages: tuple[OutboxMessage, ...]
    facts: Mapping[str, Json]
    submit: Callable[[StateTree, str], None] | None  # makes a version of it
    copy_seconds: float
    due: _Due  # as it was before: what is due again where this commit fails


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it: a report, or the disk's error."""

    pending: PendingCommit
    report: CommitReport | None = None
    error: DiskRefused | None = None


class _TooLong(Exception):
    """A commit that is waited for goes on."""


class Checkpointing:
    """Keeps what has to be told and the offsets learnt up to; commits both with a copy of the state.

    The training thread calls everything here. It hands a commit over and goes on; what came of it is taken in at a
    later batch boundary. One is under way at a time.
    """

    def __init__(
        self,
        *,
        learner: StreamLearner,
        commit_log: CommitLog,
        store: SnapshotStore,
        facts: ProcessFacts,
        stream_settings: StreamSettings,
        snapshot_settings: SnapshotSettings,
        registry_settings: RegistrySettings,
        observer: Observer,
        versions: Versions | None,
        reports: Reports | None,
        commits: Commits[Outcome | None] | None = None,
    ) -> None:
        """`reports`: of the branch that writes to the stream's topics. `commits`: a `CommitThread` by default."""
        self.stop = threading.Event()  # who waits for brokers gives up; the process puts its own here
        self.offsets: dict[Partition, int] = {}  # learnt up to, exclusive
        self._learner = learner
        self._facts = facts
        self._commit_log = commit_log
        self._stream_settings = stream_settings
        self._snapshot_settings = snapshot_settings
        self._registry_settings = registry_settings
        self._observer = observer
        self._versions = versions
        self._reports = reports
        self._speaks = facts.branch == MAIN_BRANCH
        self.committer = SnapshotCommit(
            store,
            commit_log,
            settings=snapshot_settings,
            speaks=self._speaks,
            wait=self._wait,
            pinned_sha256=lambda: versions.pinned() if versions is not None else (),
        )
        self._commits: Commits[Outcome | None] = commits or CommitThread()
        self._leaving = threading.Event()
        self._settings_facts = settings_facts(learner.settings)
        self._last_records: dict[Partition, tuple[int, str]] = {}
        self._newest_records: dict[Partition, Record] = {}
        self._outbox = Outbox(
            max_messages=snapshot_settings.max_outbox_messages, max_bytes=snapshot_settings.max_outbox_bytes
        )
        self._told_before = ToldBefore()
        self._told_since: Json = None
        self._committed_offsets: dict[Partition, int] = {}
        self._due = _Due(snapshot_at=time.monotonic())
        self._told_at = time.monotonic()
        self._disk_retry_at = 0.0
        self._waited_seconds = 0.0
        self._busy_told_at = time.monotonic()

    def begin_at(self, beginning: Beginning) -> None:
        """Go on from where a start has led to."""
        self.offsets = dict(beginning.offsets)
        self._last_records = dict(beginning.last_records)
        self._told_before, self._told_since = beginning.told_before, beginning.told_since
        self._outbox.add(beginning.untold)
        self._committed_offsets = dict(self.offsets)
        records = self._learner.records_consumed
        self._due = _Due(
            snapshot_at=time.monotonic(),
            records_at_commit=records,
            records_at_version=cast(int, beginning.facts.get("records_at_version") or 0),
        )
        self._told_at = time.monotonic()
        self._submit_again(beginning)

    def go_back(
        self,
        offsets: Mapping[Partition, int],
        last_records: Mapping[Partition, tuple[int, str]],
        told_before: ToldBefore,
        told_since: Json,
        *,
        trigger: str,
    ) -> None:
        """The learner has adopted a state at these earlier offsets: commit it, whatever else is due, and register it.
        What comes is learnt a second time and told once. A disk that does not take it now is tried again later; whoever
        dies before that has not adopted."""
        self.offsets, self._last_records = dict(offsets), dict(last_records)
        self._newest_records.clear()
        self._told_before, self._told_since = told_before, told_since
        self._begin(trigger)
        self._settle()

    @property
    def waited_seconds(self) -> float:
        """For commits, so far: time in which nothing was learnt, whoever was to blame."""
        return self._waited_seconds

    def note(self, batch: MicroBatch) -> None:
        """The learner has stepped on this batch."""
        self.offsets.update(batch.next_offsets)
        self._newest_records.update(batch.last_records)

    def tell(self, *messages: OutboxMessage) -> None:
        if self._speaks:
            self._outbox.add(message for message in messages if not self._told_before.holds(message))

    def tell_event(self, kind: str, key: str, data: Mapping[str, Json]) -> None:
        self.tell(
            event_message(
                stream=self._facts.stream,
                branch=self._facts.branch,
                kind=kind,
                key=key,
                data={"records_consumed": self._learner.records_consumed, **data},
                time_seconds=time.time(),
            )
        )

    def want_snapshot(self) -> None:
        """Of this moment, where the commit under way ends within some seconds; else as soon as one can be taken: for
        brokers that are away no learning waits longer."""
        self._due = replace(self._due, at_once=True)
        deadline = time.monotonic() + _WANTED_SNAPSHOT_SECONDS

        def tick() -> None:
            self._tick()
            if time.monotonic() >= deadline:
                raise _TooLong

        with suppress(_TooLong), self._waiting():
            self._finish(self._commits.wait(tick))

    def commit_if_due(self) -> None:
        """At a batch boundary: take in what became of the commit before; begin the next one where it is due, else a
        heartbeat where that is."""
        self._finish(self._commits.collect())
        if self._outbox.is_overfull:
            self._make_room()
        now = time.monotonic()
        if self._commits.is_busy:
            # Also one that has ended a moment ago: its receipts must not be mixed with those of the next one.
            self._warn_of_a_slow_commit(now)
            return
        self._tell_versions()
        if now >= self._disk_retry_at:
            if self._version_is_due():
                self._begin("periodic")
            elif self._due.at_once or (self._snapshot_is_due(now) and self._has_moved()):
                self._begin()
            self._finish(self._commits.collect())
        if now - self._told_at >= self._stream_settings.heartbeat_seconds and not self._commits.is_busy:
            self._told_at = self._busy_told_at = now
            self._commits.begin(self._heartbeat)
        self._finish(self._commits.collect())

    def commit_what_was_learnt(self) -> None:
        """On the way out because of an error, which must not be hidden by a disk or brokers that fail as well."""
        try:
            self._settle()
            if self._has_moved():
                self._begin()
                self._settle()
        except BrokerUnavailable as error:
            self._observer.warned(f"the last commit is told by the next start: {error}")

    def commit_now(self, *, at_any_rate: bool = False) -> None:
        """Wait for it to be durable and told; where nothing has moved nothing is written, unless `at_any_rate`.

        There is no next try, so the disk's `OSError` leaves.
        """
        self._settle()
        if at_any_rate or self._has_moved():
            self._commit_to_the_end(None)

    def commit_soon(self) -> None:
        """Now, where the disk takes it; else what has to be told waits for the next try."""
        self._settle()
        self._begin()
        self._settle()

    def commit_last(self, drain_seconds: float, drain_seconds_at_signal: float) -> int:
        """The commit of a learner that ends, as a version where something was learnt since the newest one.

        Versions that wait are waited for at most so long (and no longer than the other, once `stop` is set); those that
        were made are told. How many remain for a later run. Raises as `commit_now`.
        """
        self._settle()
        if self._versions is None:
            self.commit_now()
            return 0
        if self._learner.records_consumed > self._due.records_at_version:
            self._commit_to_the_end("final")
        else:
            self.commit_now()

        def goes_on(waited_seconds: float) -> bool:
            self._tick()
            return waited_seconds < (drain_seconds_at_signal if self.stop.is_set() else drain_seconds)

        waiting = self._versions.close(goes_on)
        if waiting:
            self._observer.warned(f"{waiting} versions wait for MLflow; they are registered by a later run")
        self._tell_versions()
        self.commit_now()
        return waiting

    def _commit_to_the_end(self, trigger: str | None) -> None:
        self._begin(trigger)
        outcome = self._commits.wait(self._tick)
        self._finish(outcome)
        if outcome is not None and outcome.error is not None:
            raise outcome.error

    def open(self) -> None:
        """Brokers that are away are waited for."""
        self._leaving.clear()

    def close(self) -> None:
        """A commit that waits for brokers gives up, one under way ends first. May be called twice."""
        self._leaving.set()
        self._commits.close()

    def _make_room(self) -> None:
        """What has to be told cannot be: learning waits, rather than fill the memory or lose a dead letter."""
        while self._outbox.is_overfull and not self.stop.is_set():
            self.commit_soon()
            if self._outbox.is_overfull:
                self._observer.warned(f"learning waits: {len(self._outbox.messages)} messages cannot be told")
                self._tick()
                with self._waiting():
                    self.stop.wait(_DISK_RETRY_SECONDS)

    def _tick(self) -> None:
        self._observer.turned({})  # waiting is no reason to be killed

    def _warn_of_a_slow_commit(self, now: float) -> None:
        """A disk that hangs raises nothing: learning goes on, and nothing of it is durable."""
        if now - self._busy_told_at >= _SLOW_COMMIT_SECONDS:
            self._busy_told_at = now
            since = now - self._due.snapshot_at
            self._observer.warned(f"the newest snapshot was begun {since:.0f} s ago, and no commit gets through since")

    def _heartbeat(self) -> None:
        try:
            self._commit_log.heartbeat()
        except BrokerUnavailable as error:
            self._observer.warned(f"no heartbeat: {error}")

    def _version_is_due(self) -> bool:
        records = self._learner.records_consumed - self._due.records_at_version
        return self._versions is not None and records >= self._registry_settings.every_records

    def _snapshot_is_due(self, now: float) -> bool:
        settings = self._snapshot_settings
        records = self._learner.records_consumed - self._due.records_at_commit
        return (
            self._outbox.is_full
            or now - self._due.snapshot_at >= settings.every_seconds
            or (settings.every_records is not None and records >= settings.every_records)
        )

    def _has_moved(self) -> bool:
        return bool(self._outbox) or self.offsets != self._committed_offsets

    def _settle(self) -> None:
        """Wait for the commit that is under way, where there is one."""
        with self._waiting():
            self._finish(self._commits.wait(self._tick))

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited_seconds += time.monotonic() - began

    def _begin(self, trigger: str | None = None) -> None:
        """Copy the state, and hand its commit over; `trigger`: of the version that it is to become."""
        before, records = self._due, self._learner.records_consumed
        version: dict[str, Json] | None = None
        if trigger is not None:
            version = {"trigger": trigger, "since_records": before.records_at_version}
        self._busy_told_at = time.monotonic()
        self._due = _Due(
            snapshot_at=time.monotonic(),
            records_at_commit=records,
            # after an adoption fewer records than at the newest version: those between have had theirs
            records_at_version=max(before.records_at_version, 0 if version is None else records),
        )
        submit = None if trigger is None else self._prepare(trigger, before.records_at_version, self.offsets)
        began = time.perf_counter()
        pending = PendingCommit(
            submit=submit,
            state=self._learner.state(),
            offsets=dict(self.offsets),
            messages=self._outbox.take(),
            facts=self._manifest_facts(version),
            copy_seconds=time.perf_counter() - began,
            due=before,
        )
        self._commits.begin(lambda: self._commit(pending))

    def _commit(self, pending: PendingCommit) -> Outcome:
        """In the commits' thread: a snapshot, durable first and told second, then the version made of it."""
        try:
            report = self.committer.commit(pending.state, pending.offsets, pending.messages, pending.facts)
        except DiskRefused as error:
            return Outcome(pending=pending, error=error)
        if pending.submit is not None:
            self._submit(pending.submit, pending.state, report.entry.sha256)
        return Outcome(pending=pending, report=replace(report, copy_seconds=pending.copy_seconds))

    def _finish(self, done: Outcome | None) -> None:
        """Take in what came of a commit. A disk that could not take it stops nothing: the outbox waits for the next
        try."""
        if done is None:
            return
        pending, report = done.pending, done.report
        if report is None:
            assert done.error is not None
            self._observer.commit_failed(done.error)
            self._outbox.put_back(pending.messages)
            self._due = replace(pending.due, at_once=pending.due.at_once or self._due.at_once)
            self._disk_retry_at = time.monotonic() + _DISK_RETRY_SECONDS
            return
        if self._reports is not None:
            self._reports.note(pending.messages)
        self._committed_offsets = dict(pending.offsets)
        self._told_at = time.monotonic()
        if self._versions is not None:
            self._versions.acknowledge()
        if report.prune_problem is not None:
            self._observer.warned(f"older snapshots could not be removed: {report.prune_problem}")
        self._observer.committed(report)

    # -- versions --------------------------------------------------------------------------------------------------

    def _tell_versions(self) -> None:
        """Not while a commit is under way: what is acknowledged after it must be what it has told."""
        for data in self._versions.collect() if self._versions is not None else ():
            self.tell_event("version_registered", f"{data.get('snapshot_sha256')}", data)

    def _submit_again(self, beginning: Beginning) -> None:
        """A kill may have come between a snapshot's commit and its submission; submitted twice it is one version."""
        version = cast("dict[str, Any] | None", beginning.facts.get("version"))
        if version is None or beginning.entry is None or self._versions is None:
            return
        if self._versions.holds(beginning.entry.sha256):
            return
        submit = self._prepare(version["trigger"], version["since_records"], beginning.entry.offsets)
        if submit is not None:
            self._submit(submit, self._learner.state(), beginning.entry.sha256)

    def _prepare(
        self, trigger: str, since_records: int, offsets: Mapping[Partition, int]
    ) -> Callable[[StateTree, str], None] | None:
        if self._versions is None:
            return None
        return self._versions.prepare(
            self._learner,
            offsets=dict(offsets),
            trigger=trigger,
            since_records=since_records,
            evaluation=self._learner.evaluate_unrecorded(),
        )

    def _submit(self, submit: Callable[[StateTree, str], None], state: StateTree, snapshot_sha256: str) -> None:
        """Handed to the registrar, which has its own process and its own time."""
        try:
            submit(cast(StateTree, state["learner"]), snapshot_sha256)
        except OSError as error:
            self._observer.warned(f"a version could not be put into the queue: {error}")

    def _wait(self, why: str, seconds: float) -> bool:
        """While the brokers are away. Called by whichever thread commits."""
        self._observer.warned(why)
        deadline = time.monotonic() + seconds
        while not (self.stop.is_set() or self._leaving.is_set()):
            left = deadline - time.monotonic()
            if left <= 0:
                return True
            self._leaving.wait(min(left, _WAIT_TICK_SECONDS))
        return False

    def _manifest_facts(self, version: Mapping[str, Json] | None) -> dict[str, Json]:
        for partition, record in self._newest_records.items():
            self._last_records[partition] = (record.offset, record_checksum(record))
        self._newest_records.clear()
        return manifest_facts(
            self._facts,
            self._learner,
            self._settings_facts,
            last_records=self._last_records,
            records_at_version=self._due.records_at_version,
            version=version,
            report_positions=None if self._reports is None else self._reports.positions,
            told_since=self._told_since if self._is_behind_what_was_told() else None,
        )

    def _is_behind_what_was_told(self) -> bool:
        """Whether a successor that goes on from here would tell something a second time without reading it back."""
        return self._told_before.reaches_past(self.offsets, self._learner.records_consumed)
