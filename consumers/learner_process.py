"""The learner's process: the whole loop on one screen.

Start (ARCHITECTURE.md, "The commit, and the start"):
1. Load the newest whole snapshot, by (generation, sequence), never by offsets. Ask whether it belongs to this stream,
   log and settings, whether the log goes on where it ended, and where there is none, whether one was committed: a
   mistyped --state must not fence another learner.
2. Claim the branch: an older learner that is still alive is fenced, the generation grows by one.
3. Where that one had committed meanwhile, once more as 1. Go on from the snapshot.
4. Where it was written but not told, tell its outbox now. Where it is older than the commit (newer ones were lost),
   read back what was told since: records are learnt a second time, with the decisions of the first, and told once.
5. Seek to *its* offsets and read ahead.

Loop: take decoded records, step on every complete batch, and at batch boundaries snapshot, register, re-commit.
Stop: drop the batch begun (its records are read again), snapshot, commit, leave.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from consumers.commit_log import BrokerUnavailable, CommitLog, Committed, transactional_id
from consumers.dead_letters import dead_letter
from consumers.decode_ahead import DecodeAhead, Idle
from consumers.events import event_message
from consumers.observers import Observer
from consumers.outbox import Outbox
from consumers.process_settings import RegistrySettings, SnapshotSettings, StreamSettings
from consumers.record_source import RecordSource, record_checksum
from consumers.snapshot_commit import CommitReport, SnapshotCommit
from consumers.state_checks import check_belongs, check_last_records, check_log, check_settings
from consumers.told_before import Reports, ToldBefore
from model_store.snapshot import OutboxMessage, Snapshot
from model_store.snapshot_store import Found, SnapshotStore
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition, Record
from pipeline.sample import Decoded
from pipeline.settings_section import fixed_values
from pipeline.state import Json
from pipeline.stream_learner import StepReport, StreamLearner
from pipeline.user_error import UserError

MAIN_BRANCH = "main"
# A disk that could not take a snapshot is tried again after this, however urgent it is: each try costs a copy of the
# state, and an outbox that stays full would ask for one after every update.
_DISK_RETRY_SECONDS = 5.0


class Registrar(Protocol):
    """Takes what is to become a version; returns at once."""

    def submit(
        self,
        learner: StreamLearner,
        *,
        snapshot_sha256: str,
        offsets: Mapping[Partition, int],
        trigger: str,
        since_records: int,
        evaluation: EvaluationReport | None,
    ) -> None:
        """Make a version of this snapshot; of its history what came after `since_records` is new.

        `evaluation` is of this very model: the newest in the history may be some hundred records old.
        """

    def holds(self, snapshot_sha256: str) -> bool:
        """Whether a version of this snapshot waits already, or was made and is still to be told."""

    def collect(self) -> Sequence[Mapping[str, Json]]:
        """What was registered since last asked: one event's data each."""

    def acknowledge(self) -> None:
        """What was collected before is committed: it need not be told again."""

    def close(self, drain_seconds: float) -> int:
        """Wait for what is waiting, at most so long; how many remain for a later run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What this process is and runs on; it stands in every manifest."""

    stream: str
    branch: str
    topic: str
    cluster_id: str
    topic_id: str
    state_id: str
    environment: Mapping[str, Json] = field(default_factory=dict)  # versions, threads, device, precision


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What one run of the process did."""

    records: int
    seconds: float
    busy_seconds: float  # from the first record taken to the last one learnt and committed
    sequence: int
    waiting_registrations: int
    stopped_by: str  # "signal", "idle", "max_records"


class LearnerProcess:
    """Snapshot + log -> later snapshot, for as long as it runs."""

    def __init__(
        self,
        *,
        learner: StreamLearner,
        source: RecordSource,
        commit_log: CommitLog,
        store: SnapshotStore,
        facts: ProcessFacts,
        stream_settings: StreamSettings,
        snapshot_settings: SnapshotSettings,
        registry_settings: RegistrySettings,
        observer: Observer,
        registrar: Registrar | None = None,
        reports: Reports | None = None,
    ) -> None:
        """`reports`: of the branch that writes to the stream's topics. Without them a fall-back tells things twice."""
        self.learner = learner
        self.facts = facts
        self._source = source
        self._commit_log = commit_log
        self._store = store
        self._stream_settings = stream_settings
        self._snapshot_settings = snapshot_settings
        self._registry_settings = registry_settings
        self._observer = observer
        self._registrar = registrar
        self._speaks = facts.branch == MAIN_BRANCH
        self._committer = SnapshotCommit(
            store, commit_log, keep=snapshot_settings.keep, speaks=self._speaks, wait=self._wait
        )
        self._stop_requested: threading.Event = threading.Event()
        self._offsets: dict[Partition, int] = {}
        self._last_records: dict[Partition, tuple[int, str]] = {}
        self._newest_records: dict[Partition, Record] = {}
        self._reports = reports
        self._outbox = Outbox(
            max_messages=snapshot_settings.max_outbox_messages, max_bytes=snapshot_settings.max_outbox_bytes
        )
        self._told_before = ToldBefore()
        self._told_since: Json = None  # positions from which `_told_before` was read; None: all of it is passed
        self._committed_offsets: dict[Partition, int] = {}
        self._snapshot_at = self._told_at = time.monotonic()
        self._disk_retry_at = 0.0
        self._records_at_commit = 0
        self._records_at_version = 0

    # -- start -----------------------------------------------------------------------------------------------------

    def start(self, stop: threading.Event | None = None) -> bool:
        """Steps 1 to 5 of the module's docstring; True where an older state goes on. `stop` ends a wait for brokers.

        `UserError` where this state cannot go on here; `LearnerFenced`, `BrokerUnavailable`, `SourceUnavailable`.
        """
        self._stop_requested = stop or self._stop_requested
        # 1.
        seen = self._commit_log.committed()
        entries, broken = self._store.entries(), self._store.broken()
        if entries:
            self._check_facts(entries[-1].facts)
        found = self._find(seen)
        # 2.
        known = [entry.generation for entry in entries] + [int(folder.path.name.split("-")[0]) for folder in broken]
        committed = self._commit_log.start(known_generation=max(known, default=0))
        if self._reports is not None:
            self._reports.open()
        # 3.
        if committed != seen or [entry.number for entry in self._store.entries()] != [
            entry.number for entry in entries
        ]:
            found = self._find(committed)
        if found.snapshot is None:
            self._offsets = dict(self._source.beginning_offsets())
        else:
            self._resume(found.snapshot, committed_sequence=committed.sequence if committed else None, found=found)
        for passed_over in found.passed_over:
            self._observer.warned(f"snapshot {passed_over.path} is not whole and was passed over: {passed_over.why}")
            self._tell_event("snapshot_passed_over", passed_over.path.name, {"why": passed_over.why})
        # 5.
        self._source.seek(self._offsets)
        self._committed_offsets = dict(self._offsets)
        self._records_at_commit = self.learner.records_consumed
        self._snapshot_at = self._told_at = time.monotonic()
        if found.snapshot is not None and found.entry is not None and found.snapshot.facts.get("version"):
            # A kill may have come between this snapshot's commit and its submission; submitted twice it is one version.
            version = cast("dict[str, Any]", found.snapshot.facts["version"])
            if self._registrar is not None and not self._registrar.holds(found.entry.sha256):
                self._submit(found.entry.sha256, version["trigger"], version["since_records"])
        self._observer.started(self.learner, found.snapshot is not None)
        return found.snapshot is not None

    def _find(self, committed: Committed | None) -> Found:
        """The newest whole snapshot, where a learner may go on from it, or begin where there is none. Changes nothing.

        Raises `UserError` where it may not.
        """
        found = self._store.newest_whole()
        if found.snapshot is not None:
            self._check_facts(found.snapshot.facts)
            check_last_records(found.snapshot.facts, self._source, found.snapshot.offsets)
        elif committed is not None and committed.sequence > 0:
            group = transactional_id(self.facts.stream, self.facts.branch)
            raise UserError(
                f"branch {self.facts.branch!r} of stream {self.facts.stream!r} has committed snapshot "
                f"{committed.sequence}, but {self._store.folder} holds none that is whole; give the --state it was "
                "learnt with, or another --branch, or, to start over in an empty --state, end its learner and delete "
                f"its group: `kafka-consumer-groups.sh --bootstrap-server HOST:PORT --delete --group {group}`"
            )
        elif committed is None and found.passed_over:
            raise UserError(
                f"branch {self.facts.branch!r} of stream {self.facts.stream!r} has committed snapshots before, but "
                f"{self._store.folder} holds none that is whole; give another --state to start over, or another "
                "--branch"
            )
        return found

    def _check_facts(self, facts: Mapping[str, Json]) -> None:
        check_belongs(facts, stream=self.facts.stream, branch=self.facts.branch, folder=self._store.folder)
        check_log(facts, cluster_id=self.facts.cluster_id, topic_id=self.facts.topic_id, topic=self.facts.topic)
        check_settings(facts, fixed_values(self.learner.settings))

    def _resume(self, snapshot: Snapshot, *, committed_sequence: int | None, found: Found) -> None:
        # 3.
        facts = snapshot.facts
        self.learner.load_state(snapshot.state)
        # 4.
        self._committer.sequence = max(snapshot.sequence, committed_sequence or 0)
        apart = bool(found.passed_over) or snapshot.sequence != committed_sequence
        # A learner that fell back and died before it came to where it had fallen from leaves its successor the rest.
        since = facts.get("told_since") or (facts.get("report_positions") if apart else None)
        if since and self._reports is not None:
            self._told_since = since
            self._told_before = self._reports.read_back(since, self._stop_requested)
            self.learner.obey(self._told_before.decisions)
        if apart:
            untold = [message for message in snapshot.outbox if not self._told_before.holds(message)]
            if snapshot.sequence > (committed_sequence or 0):
                self._committer.tell(replace(snapshot, outbox=tuple(untold)))
            else:
                self._outbox.add(untold)
        beginning = self._source.beginning_offsets()  # partitions that came since are read from their beginning
        self._offsets = {**beginning, **snapshot.offsets}
        for topic, number, offset, checksum in cast("list[tuple[str, int, int, str]]", facts["last_records"]):
            self._last_records[Partition(topic, number)] = (offset, checksum)
        self._records_at_version = cast(int, facts.get("records_at_version") or 0)

    # -- loop ------------------------------------------------------------------------------------------------------

    def run(
        self,
        *,
        stop: threading.Event,
        until_idle_seconds: float | None = None,
        max_records: int | None = None,
    ) -> RunReport:
        """Learn until `stop` is set, the log was idle for so long, or so many records were consumed by this run.

        Whatever is raised leaves with the reading thread joined and no snapshot written that was not due:
        `LearnerFenced` (write nothing more), `OutboxRefused`, `BrokerUnavailable` (the newest snapshot is durable, the
        next start tells it), `OSError` (the last snapshot could not be written); and from the reading `LogTruncated`,
        `SourceUnavailable` and `UserError`, after a snapshot: what was learnt may no longer lie in the log.
        """
        self._stop_requested = stop
        began = time.monotonic()
        first_record = self.learner.records_consumed
        newest_record_at = began
        first_taken_at: float | None = None
        busy_until = began
        stopped_by = "signal"
        self._source.seek(self._offsets)  # a run before this one has read ahead of what it learnt
        ahead = DecodeAhead(
            self._source,
            RecordDecoder(self.learner.settings.input).decode,
            capacity_records=self._stream_settings.decode_ahead_records,
            poll_seconds=self._stream_settings.poll_seconds,
        )
        with ahead:
            while not stop.is_set():
                taken = self._take(ahead)
                if not isinstance(taken, Idle):
                    if taken:
                        newest_record_at = time.monotonic()
                        first_taken_at = first_taken_at or newest_record_at
                    for decoded in taken:
                        if self.learner.add(decoded):
                            self._take_in(self.learner.step(self.learner.assembler.take()))
                            self._commit_if_due()
                            if stop.is_set() or self._reached(max_records, first_record):
                                break
                    if taken:
                        busy_until = time.monotonic()
                else:
                    idle_seconds = time.monotonic() - newest_record_at
                    is_last = until_idle_seconds is not None and idle_seconds >= until_idle_seconds
                    if is_last or idle_seconds >= self._stream_settings.idle_flush_seconds:
                        self._idle(taken.positions)
                    if is_last:
                        stopped_by = "idle"
                        break
                if self._reached(max_records, first_record):
                    stopped_by = "max_records"
                    break
                self._commit_if_due()
        return self._stop(
            stopped_by,
            records=self.learner.records_consumed - first_record,
            began=began,
            busy_seconds=busy_until - (first_taken_at or busy_until),
        )

    def _reached(self, max_records: int | None, first_record: int) -> bool:
        return max_records is not None and self.learner.records_consumed - first_record >= max_records

    def _take(self, ahead: DecodeAhead) -> list[Decoded] | Idle:
        """One turn of the loop begins."""
        try:
            taken = ahead.take(self._stream_settings.poll_seconds)
        except Exception:
            self.learner.discard_pending()
            self._commit_if_moved()
            raise
        self._observer.turned(ahead.lag_records)
        self._tell_versions()
        return taken

    def _take_in(self, report: StepReport) -> None:
        """Note what a step consumed and what has to be told of it."""
        batch = report.batch
        self._offsets.update(batch.next_offsets)
        self._newest_records.update(batch.last_records)
        self._tell(*(dead_letter(self.facts.stream, record, problem) for record, problem in batch.dead))
        if report.update is not None:
            for name in report.update.new_classes:
                self._tell_event("new_class", name, {"class": name})
        if report.drift:
            self._tell_event("drift", str(report.records_consumed), {"detector": self.learner.settings.drift.detector})
        self._observer.stepped(self.learner, report)
        if report.evaluation is not None:
            self._observer.evaluated(self.learner, report.evaluation)

    def _idle(self, positions: Mapping[Partition, int]) -> None:
        """Everything was read: learn the partial batch, and let the offsets pass control records too (lag is 0).

        The commit of it waits for its time: on a trickle every record is followed by a lull, and no record is worth a
        snapshot of its own.
        """
        report = self.learner.flush()
        if report is not None:
            self._tell_event(
                "idle_flush", str(report.records_consumed), {"offsets": _offsets_json(report.batch.next_offsets)}
            )
            self._take_in(report)
        self._offsets.update({p: max(offset, self._offsets.get(p, 0)) for p, offset in positions.items()})

    def _stop(self, stopped_by: str, *, records: int, began: float, busy_seconds: float) -> RunReport:
        self.learner.discard_pending()
        evaluation = self.learner.evaluate_unrecorded()
        if evaluation is not None:
            self._observer.evaluated(self.learner, evaluation)
        if self._registrar is not None and self.learner.records_consumed > self._records_at_version:
            self._register("final", must=True)
        else:
            self._commit_if_moved(must=True)
        waiting = 0
        if self._registrar is not None:
            waiting = self._registrar.close(self._registry_settings.drain_seconds)
            if waiting:
                self._observer.warned(f"{waiting} versions wait for MLflow; they are registered by a later run")
            self._tell_versions()
            self._commit_if_moved(must=True)
        return RunReport(
            records=records,
            seconds=time.monotonic() - began,
            busy_seconds=busy_seconds,
            sequence=self._committer.sequence,
            waiting_registrations=waiting,
            stopped_by=stopped_by,
        )

    def _wait(self, why: str, seconds: float) -> bool:
        self._observer.warned(why)
        self._observer.turned({})  # waiting for brokers is no reason to be killed
        return not self._stop_requested.wait(seconds)

    # -- telling and committing ------------------------------------------------------------------------------------

    def _tell(self, *messages: OutboxMessage) -> None:
        if self._speaks:
            self._outbox.add(message for message in messages if not self._told_before.holds(message))

    def _tell_event(self, kind: str, key: str, data: Mapping[str, Json]) -> None:
        self._tell(
            event_message(
                stream=self.facts.stream,
                branch=self.facts.branch,
                kind=kind,
                key=key,
                data={"records_consumed": self.learner.records_consumed, **data},
                time_seconds=time.time(),
            )
        )

    def _tell_versions(self) -> None:
        for data in self._registrar.collect() if self._registrar is not None else ():
            self._tell_event("version_registered", f"{data.get('snapshot_sha256')}", data)

    def _commit_if_due(self) -> None:
        """At a batch boundary: a snapshot where one is due, else a heartbeat where that is."""
        now = time.monotonic()
        if now >= self._disk_retry_at:
            if self._version_is_due():
                self._register("periodic")
            elif self._snapshot_is_due(now):
                self._commit_if_moved()
        if time.monotonic() - self._told_at >= self._stream_settings.heartbeat_seconds:
            self._told_at = time.monotonic()
            try:
                self._commit_log.heartbeat()
            except BrokerUnavailable as error:
                self._observer.warned(f"no heartbeat: {error}")

    def _version_is_due(self) -> bool:
        records = self.learner.records_consumed - self._records_at_version
        return self._registrar is not None and records >= self._registry_settings.every_records

    def _snapshot_is_due(self, now: float) -> bool:
        settings = self._snapshot_settings
        records = self.learner.records_consumed - self._records_at_commit
        return (
            self._outbox.is_full
            or now - self._snapshot_at >= settings.every_seconds
            or (settings.every_records is not None and records >= settings.every_records)
        )

    def _commit_if_moved(self, *, must: bool = False) -> None:
        if self._outbox or self._offsets != self._committed_offsets:
            self._commit(must=must)

    def _commit(self, version: Mapping[str, Json] | None = None, *, must: bool = False) -> CommitReport | None:
        """Snapshot and commit; a disk that cannot take it stops nothing: the outbox waits for the next try.

        `must`: there is no next try, so the error leaves.
        """
        try:
            report = self._committer.commit(
                self.learner.state(), self._offsets, self._outbox.messages, self._manifest_facts(version)
            )
        except OSError as error:
            self._observer.commit_failed(error)
            if must:
                raise
            self._disk_retry_at = time.monotonic() + _DISK_RETRY_SECONDS
            return None
        if self._reports is not None:
            self._reports.note(self._outbox.messages)
        self._outbox.clear()
        self._committed_offsets = dict(self._offsets)
        self._records_at_commit = self.learner.records_consumed
        self._snapshot_at = self._told_at = time.monotonic()
        if self._registrar is not None:
            self._registrar.acknowledge()
        if report.prune_problem is not None:
            self._observer.warned(f"older snapshots could not be removed: {report.prune_problem}")
        self._observer.committed(report)
        return report

    def _register(self, trigger: str, *, must: bool = False) -> None:
        """A snapshot, and a version made of it: handed to the registrar, which has its own process and its own time."""
        since, self._records_at_version = self._records_at_version, self.learner.records_consumed
        report = self._commit(version={"trigger": trigger, "since_records": since}, must=must)
        if report is None:
            self._records_at_version = since  # due again
        else:
            self._submit(report.entry.sha256, trigger, since)

    def _submit(self, snapshot_sha256: str, trigger: str, since_records: int) -> None:
        if self._registrar is None:
            return
        try:
            self._registrar.submit(
                self.learner,
                snapshot_sha256=snapshot_sha256,
                offsets=self._offsets,
                trigger=trigger,
                since_records=since_records,
                evaluation=self.learner.evaluate_unrecorded(),
            )
        except OSError as error:
            self._observer.warned(f"a version could not be handed to the registrar: {error}")

    def _manifest_facts(self, version: Mapping[str, Json] | None) -> dict[str, Json]:
        for partition, record in self._newest_records.items():
            self._last_records[partition] = (record.offset, record_checksum(record))
        self._newest_records.clear()
        fixed: dict[str, Any] = fixed_values(self.learner.settings)
        architecture = None if self.learner.learner is None else self.learner.learner.architecture
        return {
            "stream": self.facts.stream,
            "branch": self.facts.branch,
            "state_id": self.facts.state_id,
            "cluster_id": self.facts.cluster_id,
            "topic_id": self.facts.topic_id,
            "last_records": [
                [p.topic, p.number, offset, sum_] for p, (offset, sum_) in sorted(self._last_records.items())
            ],
            "fixed_settings": fixed,
            "settings": self.learner.settings.model_dump(mode="json"),
            "architecture": architecture,
            "classes": list(self.learner.class_names),
            "records_consumed": self.learner.records_consumed,
            "records_at_version": self._records_at_version,
            "version": None if version is None else dict(version),  # what this snapshot is to become in the registry
            "report_positions": [] if self._reports is None else self._reports.positions,
            "told_since": self._told_since if self._told_before.reaches_past(self._offsets) else None,
            "environment": dict(self.facts.environment),
        }


def _offsets_json(offsets: Mapping[Partition, int]) -> list[Json]:
    return [[p.topic, p.number, offset] for p, offset in sorted(offsets.items())]
