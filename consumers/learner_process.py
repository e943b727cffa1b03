"""The learner's process: the whole loop on one screen.

Start (DESIGN section 4):
1. Claim the branch: an older learner that is still alive is fenced, the generation grows by one.
2. Load the newest whole snapshot, by (generation, sequence), never by offsets.
3. Check that it belongs to this stream, log and settings.
4. Where it was written but not told, tell its outbox now.
5. Seek to *its* offsets and read ahead.

Loop: take decoded records, step on every complete batch, and at batch boundaries snapshot, register, re-commit.
Stop: drop the batch begun (its records are read again), snapshot, commit, leave.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from consumers.commit_log import BrokerUnavailable, CommitLog
from consumers.dead_letters import dead_letter
from consumers.decode_ahead import DecodeAhead, Idle
from consumers.events import event_message
from consumers.process_settings import RegistrySettings, SnapshotSettings, StreamSettings
from consumers.record_source import RecordSource, record_checksum
from consumers.snapshot_commit import CommitReport, SnapshotCommit
from consumers.state_checks import check_belongs, check_last_records, check_log, check_settings
from model_store.snapshot import OutboxMessage, Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition, Record
from pipeline.settings_section import fixed_values
from pipeline.state import Json
from pipeline.stream_learner import StepReport, StreamLearner
from pipeline.user_error import UserError

MAIN_BRANCH = "main"


class Observer(Protocol):
    """Hears what the process did: metrics, a live line, a test. Its methods must not raise and not block."""

    def started(self, learner: StreamLearner, resumed: bool) -> None: ...

    def stepped(self, learner: StreamLearner, report: StepReport) -> None: ...

    def evaluated(self, learner: StreamLearner, report: EvaluationReport) -> None: ...

    def committed(self, report: CommitReport) -> None: ...

    def commit_failed(self, error: OSError) -> None: ...

    def turned(self, lag_records: Mapping[Partition, int]) -> None: ...

    def warned(self, message: str) -> None: ...


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
    ) -> None:
        """Make a version of this snapshot; of its history what came after `since_records` is new."""

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
    ) -> None:
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
        self._outbox: list[OutboxMessage] = []
        self._outbox_bytes = 0
        self._committed_offsets: dict[Partition, int] = {}
        self._committed_at = time.monotonic()
        self._records_at_commit = 0
        self._records_at_version = 0

    # -- start -----------------------------------------------------------------------------------------------------

    def start(self) -> bool:
        """Steps 1 to 5 of the module's docstring; True where an older state goes on."""
        # 1.
        known = [entry.generation for entry in self._store.entries()]
        committed = self._commit_log.start(known_generation=max(known, default=0))
        # 2.
        found = self._store.newest_whole()
        for passed_over in found.passed_over:
            self._observer.warned(f"snapshot {passed_over.path} is not whole and was passed over: {passed_over.why}")
        if found.snapshot is None:
            if committed is not None and committed.sequence > 0:
                raise UserError(
                    f"branch {self.facts.branch!r} of stream {self.facts.stream!r} has committed snapshot "
                    f"{committed.sequence}, but {self._store.folder} holds none that is whole; "
                    "give the --state it was learnt with, or another --branch"
                )
            self._offsets = dict(self._source.beginning_offsets())
        else:
            self._resume(found.snapshot, committed_sequence=committed.sequence if committed else 0)
        if found.snapshot is not None and found.entry is not None and found.snapshot.facts.get("version"):
            # A kill may have come between this snapshot's commit and its submission; submitted twice it is one version.
            version = cast("dict[str, Any]", found.snapshot.facts["version"])
            self._submit(found.entry.sha256, version["trigger"], version["since_records"])
        # 5.
        self._source.seek(self._offsets)
        self._committed_offsets = dict(self._offsets)
        self._records_at_commit = self.learner.records_consumed
        self._observer.started(self.learner, found.snapshot is not None)
        return found.snapshot is not None

    def _resume(self, snapshot: Snapshot, *, committed_sequence: int) -> None:
        # 3.
        facts = snapshot.facts
        check_belongs(facts, stream=self.facts.stream, branch=self.facts.branch, folder=self._store.folder)
        check_log(facts, cluster_id=self.facts.cluster_id, topic_id=self.facts.topic_id, topic=self.facts.topic)
        check_settings(facts, fixed_values(self.learner.settings))
        check_last_records(facts, self._source, snapshot.offsets)
        self._committer.sequence = snapshot.sequence
        # 4.
        if snapshot.sequence > committed_sequence:
            self._committer.tell(snapshot)
        self.learner.load_state(snapshot.state)
        beginning = self._source.beginning_offsets()  # partitions that came since are read from their beginning
        self._offsets = {**beginning, **snapshot.offsets}
        for topic, number, offset, checksum in cast("list[tuple[str, int, int, str]]", facts["last_records"]):
            self._last_records[Partition(topic, number)] = (offset, checksum)
        self._records_at_version = int(facts.get("records_at_version") or 0)  # type: ignore[arg-type]

    # -- loop ------------------------------------------------------------------------------------------------------

    def run(
        self,
        *,
        stop: threading.Event,
        until_idle_seconds: float | None = None,
        max_records: int | None = None,
    ) -> RunReport:
        """Learn until `stop` is set, the log was idle for so long, or so many records were consumed by this run."""
        self._stop_requested = stop
        began = time.monotonic()
        first_record = self.learner.records_consumed
        newest_record_at = time.monotonic()
        first_taken_at: float | None = None
        busy_until = began
        stopped_by = "signal"
        ahead = DecodeAhead(
            self._source,
            RecordDecoder(self.learner.settings.input).decode,
            capacity_records=self._stream_settings.decode_ahead_records,
        )
        with ahead:
            while not stop.is_set():
                taken = ahead.take(self._stream_settings.poll_seconds)
                self._observer.turned(ahead.lag_records)
                if not isinstance(taken, Idle):
                    if taken:
                        newest_record_at = time.monotonic()
                        first_taken_at = first_taken_at or newest_record_at
                    for decoded in taken:
                        if self.learner.add(decoded):
                            self._take_in(self.learner.step(self.learner.assembler.take()))
                            if stop.is_set() or self._reached(max_records, first_record):
                                break
                    self._commit_if_due()
                    if taken:
                        busy_until = time.monotonic()
                    if self._reached(max_records, first_record):
                        stopped_by = "max_records"
                        break
                    continue
                idle_seconds = time.monotonic() - newest_record_at
                if idle_seconds >= self._stream_settings.idle_flush_seconds or (
                    until_idle_seconds is not None and idle_seconds >= until_idle_seconds
                ):
                    self._idle(taken.positions)
                if until_idle_seconds is not None and idle_seconds >= until_idle_seconds:
                    stopped_by = "idle"
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

    def _take_in(self, report: StepReport) -> None:
        """Note what a step consumed and what has to be told of it."""
        batch = report.batch
        self._offsets.update(batch.next_offsets)
        self._newest_records.update(batch.last_records)
        for record, problem in batch.dead:
            self._tell(dead_letter(self.facts.stream, record, problem))
        if report.update is not None:
            for name in report.update.new_classes:
                self._tell_event("new_class", f"{name}", {"class": name})
        if report.drift:
            self._tell_event("drift", str(report.records_consumed), {"detector": self.learner.settings.drift.detector})
        self._observer.stepped(self.learner, report)
        if report.evaluation is not None:
            self._observer.evaluated(self.learner, report.evaluation)
        full = (
            len(self._outbox) >= self._snapshot_settings.max_outbox_messages
            or self._outbox_bytes >= self._snapshot_settings.max_outbox_bytes
        )
        due = self.learner.records_consumed - self._records_at_version >= self._registry_settings.every_records
        if due and self._registrar is not None:
            self._register("periodic")
        elif full:
            self._commit()

    def _idle(self, positions: Mapping[Partition, int]) -> None:
        """Everything was read: learn the partial batch, and let the offsets pass control records too (lag is 0)."""
        report = self.learner.flush()
        if report is not None:
            self._tell_event(
                "idle_flush", str(report.records_consumed), {"offsets": _offsets_json(report.batch.next_offsets)}
            )
            self._take_in(report)
        self._offsets.update({p: max(offset, self._offsets.get(p, 0)) for p, offset in positions.items()})
        if self._outbox or self._offsets != self._committed_offsets:
            self._commit()

    def _stop(self, stopped_by: str, *, records: int, began: float, busy_seconds: float) -> RunReport:
        self.learner.discard_pending()
        evaluation = self.learner.evaluate_unrecorded()
        if evaluation is not None:
            self._observer.evaluated(self.learner, evaluation)
        if self._registrar is not None and self.learner.records_consumed > self._records_at_version:
            self._register("final")
        elif self._outbox or self._offsets != self._committed_offsets:
            self._commit()
        waiting = 0
        if self._registrar is not None:
            waiting = self._registrar.close(self._registry_settings.drain_seconds)
            if waiting:
                self._observer.warned(f"{waiting} versions wait for MLflow; they are registered by a later run")
            self._tell_versions()
            if self._outbox:
                self._commit()
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
        return not self._stop_requested.wait(seconds)

    # -- telling and committing ------------------------------------------------------------------------------------

    def _tell(self, message: OutboxMessage) -> None:
        self._outbox.append(message)
        self._outbox_bytes += len(message.value or b"") + len(message.key or b"")

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
        assert self._registrar is not None
        for data in self._registrar.collect():
            self._tell_event("version_registered", f"{data.get('snapshot_sha256')}", data)

    def _commit_if_due(self) -> None:
        settings = self._snapshot_settings
        if self._registrar is not None:
            self._tell_versions()
        moved = self._outbox or self._offsets != self._committed_offsets
        waited = time.monotonic() - self._committed_at
        by_records = (
            settings.every_records is not None
            and self.learner.records_consumed - self._records_at_commit >= settings.every_records
        )
        if moved and (waited >= settings.every_seconds or by_records):
            self._commit()
        elif waited >= self._stream_settings.heartbeat_seconds:
            self._committed_at = time.monotonic()
            try:
                self._commit_log.heartbeat()
            except BrokerUnavailable as error:
                self._observer.warned(f"no heartbeat: {error}")

    def _commit(self, version: Mapping[str, Json] | None = None) -> CommitReport | None:
        """Snapshot and commit; a disk that cannot take it stops nothing: the outbox waits for the next try."""
        self._committed_at = time.monotonic()
        try:
            report = self._committer.commit(
                self.learner.state(), self._offsets, self._outbox, self._manifest_facts(version)
            )
        except OSError as error:
            self._observer.commit_failed(error)
            return None
        self._outbox.clear()
        self._outbox_bytes = 0
        self._committed_offsets = dict(self._offsets)
        self._records_at_commit = self.learner.records_consumed
        if self._registrar is not None:
            self._registrar.acknowledge()
        self._observer.committed(report)
        return report

    def _register(self, trigger: str) -> None:
        """A snapshot, and a version made of it: handed to the registrar, which has its own process and its own time."""
        since, self._records_at_version = self._records_at_version, self.learner.records_consumed
        report = self._commit(version={"trigger": trigger, "since_records": since})
        if report is not None:
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
            "last_records": [[p.topic, p.number, offset, sum_] for p, (offset, sum_) in sorted(self._last_records.items())],
            "fixed_settings": fixed,
            "settings": self.learner.settings.model_dump(mode="json"),
            "architecture": architecture,
            "classes": list(self.learner.class_names),
            "records_consumed": self.learner.records_consumed,
            "records_at_version": self._records_at_version,
            "version": None if version is None else dict(version),  # what this snapshot is to become in the registry
            "environment": dict(self.facts.environment),
        }


def _offsets_json(offsets: Mapping[Partition, int]) -> list[Json]:
    return [[p.topic, p.number, offset] for p, offset in sorted(offsets.items())]
