"""The learner's process: the whole loop on one screen.

Start: learner_start.py.
Loop: take decoded records, step on every complete batch; at batch boundaries checkpointing.py hands a copy of the state
to the thread that makes snapshots of it, tells of them and registers versions.
Between two batches it may take over what a restructuring has made of an earlier state (adoption.py), and then learns
once more what came since.
Stop: drop the batch begun (its records are read again), snapshot, commit, leave.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consumers.adoption import Adoption
from consumers.catching_up import Pace
from consumers.checkpointing import Checkpointing, Outcome
from consumers.commit_log import CommitLog
from consumers.commit_thread import Commits
from consumers.dead_letters import dead_letter
from consumers.decode_ahead import DecodeAhead, Idle
from consumers.learner_start import LearnerStart
from consumers.log_gap import Gap
from consumers.manifest_facts import ProcessFacts
from consumers.observers import Observer
from consumers.process_settings import RegistrySettings, SnapshotSettings, StreamSettings
from consumers.record_source import RecordSource, SourceUnavailable
from consumers.told_before import Reports
from consumers.versions import Versions
from model_store.fault_points import fault_point
from model_store.offers import Offer, OfferStore, Refusal
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.record import Partition
from pipeline.restructuring.trigger import Request
from pipeline.sample import Decoded
from pipeline.state import Json
from pipeline.stream_learner import StepReport, StreamLearner, idle_flush


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What one run of the process did."""

    records: int
    seconds: float
    busy_seconds: float  # from the first record taken to the last one learnt and committed
    sequence: int
    waiting_registrations: int
    stopped_by: str  # "signal", "idle", "max_records"


@dataclass(slots=True, kw_only=True)
class _Course:
    """A run so far; times are monotonic."""

    began: float
    newest_record_at: float
    busy_until: float
    first_taken_at: float | None = None
    learning_seconds: float = 0.0  # without the waits for records and for commits
    records: int = 0  # learnt; those between an offer's place and where it was adopted count twice

    def has_reached(self, max_records: int | None) -> bool:
        return max_records is not None and self.records >= max_records


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
        versions: Versions | None = None,
        reports: Reports | None = None,
        accept_gap: bool = False,
        commits: Commits[Outcome | None] | None = None,
        offers: OfferStore | None = None,
    ) -> None:
        """`reports`: of the branch that writes to the stream's topics. Without them a fall-back tells things twice.
        `accept_gap`: go on where the log has lost what comes next. `commits`: a `CommitThread` by default.
        `offers`: where restructurings put theirs; without it none is looked for.
        """
        self.learner = learner
        self.facts = facts
        self.resumed_from: SnapshotEntry | None = None  # after the start; None: nothing was learnt before
        self._source = source
        self._stream_settings = stream_settings
        self._registry_settings = registry_settings
        self._observer = observer
        self._checkpoints = Checkpointing(
            learner=learner,
            commit_log=commit_log,
            store=store,
            facts=facts,
            stream_settings=stream_settings,
            snapshot_settings=snapshot_settings,
            registry_settings=registry_settings,
            observer=observer,
            versions=versions,
            reports=reports,
            commits=commits,
        )
        self._course = _Course(began=0.0, newest_record_at=0.0, busy_until=0.0)
        self._offer: Offer | Refusal | None = None
        self._adoption: Adoption | None = None
        if offers is not None:
            self._adoption = Adoption(
                learner=learner,
                offers=offers,
                store=store,
                checkpoints=self._checkpoints,
                source=source,
                facts=facts,
                observer=observer,
                reports=reports,
            )
        self._start = LearnerStart(
            learner=learner,
            source=source,
            commit_log=commit_log,
            store=store,
            facts=facts,
            committer=self._checkpoints.committer,
            reports=reports,
            accept_gap=accept_gap,
        )

    # -- start -----------------------------------------------------------------------------------------------------

    def start(self, stop: threading.Event | None = None) -> bool:
        """Load the state, claim the branch, seek (learner_start.py); True where an older state goes on.

        `stop` ends a wait for brokers. Raises as `LearnerStart.begin`, and `OSError` where an accepted gap cannot be
        recorded.
        """
        self._checkpoints.stop = stop or self._checkpoints.stop
        beginning = self._start.begin(self._checkpoints.stop)
        self.resumed_from = beginning.entry
        self._checkpoints.begin_at(beginning)
        for passed_over in beginning.passed_over:
            self._observer.warned(f"snapshot {passed_over.path} was passed over: {passed_over.why}")
            self._checkpoints.tell_event("snapshot_passed_over", passed_over.path.name, {"why": passed_over.why})
        if beginning.gaps and beginning.entry is not None:
            self._accept(beginning.gaps, beginning.entry)
        resumed = beginning.entry is not None
        self._observer.started(self.learner, resumed)
        return resumed

    def _accept(self, gaps: Sequence[Gap], entry: SnapshotEntry) -> None:
        """Record and tell of them before anything is learnt, so that no later start asks again."""
        data: list[Json] = [gap.as_json for gap in gaps]
        self.learner.decide({"kind": "accepted_gap", "gaps": data, "records_consumed": self.learner.records_consumed})
        # The same numbers may be another gap, of a log that was made anew twice: the snapshot's tell them apart.
        key = ",".join([*(f"{gap.partition}@{gap.expected_offset}-{gap.next_offset}" for gap in gaps), entry.path.name])
        self._checkpoints.tell_event("accepted_gap", key, {"gaps": data, "why": [gap.why for gap in gaps]})
        for gap in gaps:
            self._observer.gap_accepted(gap)
        self._checkpoints.commit_now(at_any_rate=True)

    # -- loop ------------------------------------------------------------------------------------------------------

    def run(
        self,
        *,
        stop: threading.Event,
        until_idle_seconds: float | None = None,
        max_records: int | None = None,
    ) -> RunReport:
        """Learn until `stop` is set, the log was idle for so long, or so many records were consumed by this run.

        Whatever is raised leaves with both threads at rest and no snapshot written that was not due:
        `LearnerFenced` (write nothing more), `OutboxRefused`, `BrokerUnavailable` (the newest snapshot is durable, the
        next start tells it), `OSError` (the last snapshot could not be written), `WeightsDiverged` (the newest snapshot
        is from before); and from the reading `LogTruncated`, `SourceUnavailable` and `UserError`, after a snapshot:
        what was learnt may no longer lie in the log.
        """
        self._checkpoints.stop = stop
        self._checkpoints.open()
        now = time.monotonic()
        course = self._course = _Course(began=now, newest_record_at=now, busy_until=now)
        try:
            while (stopped_by := self._learn(stop, until_idle_seconds, max_records)) is None:
                self._take_offer(stop)
            return self._stop(
                stopped_by,
                records=course.records,
                began=course.began,
                busy_seconds=course.busy_until - (course.first_taken_at or course.busy_until),
            )
        finally:
            self._checkpoints.close()

    def _learn(self, stop: threading.Event, until_idle_seconds: float | None, max_records: int | None) -> str | None:
        """Read and learn until something ends it: what ended the run; None: an offer waits."""
        course = self._course
        offsets = self._checkpoints.offsets
        if any(partition not in offsets for partition in self._source.partitions):
            # one that came while it ran: what was read of it was not learnt
            offsets = {**self._source.beginning_offsets(), **offsets}
        self._source.seek(offsets)  # what was read ahead of what was learnt is read again
        ahead = DecodeAhead(
            self._source,
            RecordDecoder(self.learner.settings.input).decode,
            capacity_records=self._stream_settings.decode_ahead_records,
            poll_seconds=self._stream_settings.poll_seconds,
            begins_at=offsets,
        )
        with ahead:
            while not stop.is_set():
                if self._adoption is not None and (offer := self._adoption.waiting()) is not None:
                    self._offer = offer
                    break
                taken = self._take(ahead)
                if not isinstance(taken, Idle):
                    if taken:
                        course.newest_record_at = time.monotonic()
                        course.first_taken_at = course.first_taken_at or course.newest_record_at
                    began, waited = time.monotonic(), self._checkpoints.waited_seconds
                    for decoded in taken:
                        if self.learner.add(decoded):
                            self._take_in(self.learner.step(self.learner.assembler.take()))
                            self._checkpoints.commit_if_due()
                            if stop.is_set() or course.has_reached(max_records):
                                break
                    if taken:
                        course.busy_until = time.monotonic()
                        waited = self._checkpoints.waited_seconds - waited
                        course.learning_seconds += course.busy_until - began - waited
                else:
                    idle_seconds = time.monotonic() - course.newest_record_at
                    is_last = until_idle_seconds is not None and idle_seconds >= until_idle_seconds
                    if is_last or idle_seconds >= self._stream_settings.idle_flush_seconds:
                        self._idle(taken.positions)
                    if is_last:
                        return "idle"
                if course.has_reached(max_records):
                    return "max_records"
                self._checkpoints.commit_if_due()
        if self._offer is None:
            return "signal"
        if ahead.is_left_behind:
            raise SourceUnavailable("a poll does not come back, so that nothing can be read anew: start again")
        return None

    def _take_offer(self, stop: threading.Event) -> None:
        """Adopt or refuse the one that waits. Nothing reads meanwhile."""
        assert self._adoption is not None, "somebody looks for offers"
        assert self._offer is not None, "one waits"
        course, offer, self._offer = self._course, self._offer, None
        try:
            self._adoption.take(offer, Pace(records=course.records, seconds=course.learning_seconds), stop)
        except SourceUnavailable as error:
            self._adoption.put_off()
            self._observer.warned(f"the offer of {offer.job} waits for the brokers: {error}")
        course.newest_record_at = time.monotonic()

    def _take(self, ahead: DecodeAhead) -> list[Decoded] | Idle:
        """One turn of the loop begins."""
        try:
            taken = ahead.take(self._stream_settings.poll_seconds)
        except Exception:
            self.learner.discard_pending()
            self._checkpoints.commit_what_was_learnt()
            raise
        self._observer.turned(ahead.lag_records, ahead.away_seconds)
        return taken

    def _take_in(self, report: StepReport) -> None:
        """Note what a step consumed and what has to be told of it."""
        batch = report.batch
        self._course.records += batch.records
        self._checkpoints.note(batch)
        self._checkpoints.tell(*(dead_letter(self.facts.stream, record, problem) for record, problem in batch.dead))
        if report.update is not None:
            for name in report.update.new_classes:
                self._checkpoints.tell_event("new_class", name, {"class": name})
        if report.drift:
            self._checkpoints.tell_event(
                "drift", str(report.records_consumed), {"detector": self.learner.settings.drift.detector}
            )
        if report.request is not None:
            self._tell_request(report.request)
        if report.wants_snapshot:
            self._checkpoints.want_snapshot()
        self._observer.stepped(self.learner, report)
        if report.evaluation is not None:
            self._observer.evaluated(self.learner, report.evaluation)
        fault_point("step.done")

    def _tell_request(self, request: Request) -> None:
        trigger, names = self.learner.trigger, self.learner.class_names
        self._checkpoints.tell_event(
            "restructuring_requested",
            str(request.at_records),
            {
                "kind": str(request.kind),
                "reason": str(request.reason),
                "new_classes": list(names[len(names) - trigger.new_classes :]),
                "base_at_records": trigger.base_at_records,
            },
        )

    def _idle(self, positions: Mapping[Partition, int]) -> None:
        """Everything was read: learn the partial batch, and let the offsets pass control records too (lag is 0).

        The commit of it waits for its time: on a trickle every record is followed by a lull, and no record is worth a
        snapshot of its own.
        """
        while (report := self.learner.flush()) is not None:
            decision = idle_flush(report.batch.next_offsets)
            if decision in self.learner.decisions:  # not where a batch became shorter
                self._checkpoints.tell_event(
                    "idle_flush", str(report.records_consumed), {"offsets": decision["offsets"]}
                )
            self._take_in(report)
        learnt = self._checkpoints.offsets
        learnt.update({p: max(offset, learnt.get(p, 0)) for p, offset in positions.items()})

    def _stop(self, stopped_by: str, *, records: int, began: float, busy_seconds: float) -> RunReport:
        self.learner.discard_pending()
        evaluation = self.learner.evaluate_unrecorded()
        if evaluation is not None:
            self._observer.evaluated(self.learner, evaluation)
        registry = self._registry_settings
        waiting = self._checkpoints.commit_last(registry.drain_seconds, registry.drain_seconds_at_signal)
        return RunReport(
            records=records,
            seconds=time.monotonic() - began,
            busy_seconds=busy_seconds,
            sequence=self._checkpoints.committer.sequence,
            waiting_registrations=waiting,
            stopped_by=stopped_by,
        )
