"""How a learner takes over what a restructuring has made of an earlier state of it. ARCHITECTURE.md."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import cast

from consumers.catching_up import AGAIN, Pace, expected_seconds, why_not_caught_up
from consumers.checkpointing import Checkpointing
from consumers.log_gap import find_gaps
from consumers.manifest_facts import ProcessFacts, decided_jobs_in, last_records_in
from consumers.observers import Observer
from consumers.record_source import LogTruncated, RecordSource
from consumers.told_before import Reports, ToldBefore
from consumers.way_back import WayBack, measure_way_back
from model_store.fault_points import fault_point
from model_store.manifest import NotWhole
from model_store.offers import Offer, OfferStore, Refusal
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.record import Partition
from pipeline.state import Json
from pipeline.stream_learner import StreamLearner
from pipeline.user_error import UserError

# Looking costs a listing of a folder that is mostly not there.
_LOOK_EVERY_SECONDS = 1.0
# A disk that takes no snapshot takes no adoption either, and brokers that are away do not say what is left of the log;
# learning goes on meanwhile.
_RETRY_SECONDS = 30.0


class Adoption:
    """Looks for offers, adopts or refuses each once.

    The result of a job is a whole state at its parent's offsets. Adopting it is like falling back to an older snapshot,
    except that the snapshot is a new one, under the learner's own next sequence, so that every later start finds it:

    1. Everything learnt and told so far is committed.
    2. The offer is checked: of this state, whole, fit for these settings, a log that still goes on from there, and that
       will do so until the learner has caught up (catching_up.py).
    3. What was told since the parent is read back: it is learnt again, with the decisions of the first time, and told
       once.
    4. The learner loads the offer; it keeps what is not the network's (`StreamLearner.adopt`).
    5. A snapshot under the next sequence, and the commit: offsets go back. A kill before this leaves the state before
       the adoption, and the offer, which is adopted again; a kill after it, the adopted one.
    6. The caller reads on from where `Checkpointing` stands: the parent's offsets.
    """

    def __init__(
        self,
        *,
        learner: StreamLearner,
        offers: OfferStore,
        store: SnapshotStore,
        checkpoints: Checkpointing,
        source: RecordSource,
        facts: ProcessFacts,
        observer: Observer,
        reports: Reports | None,
    ) -> None:
        self._learner = learner
        self._offers = offers
        self._store = store
        self._checkpoints = checkpoints
        self._source = source
        self._facts = facts
        self._observer = observer
        self._reports = reports
        self._looked_at = 0.0
        self._has_warned_of_retention = False

    def waiting(self) -> Offer | Refusal | None:
        """An offer that is neither adopted nor refused, or a refusal that is not told; looked for once a second. Those
        that are decided go when no fall-back can need them any more."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_EVERY_SECONDS:
            return None
        self._looked_at = now
        waiting = self._offers.answers()
        decided = self._learner.decided_jobs
        for offer in waiting:
            if offer.job in decided and self._is_durable(offer.job):
                with suppress(OSError):  # on a disk that takes no change it harms nobody
                    self._offers.remove(offer.job)
        return next((offer for offer in waiting if offer.job not in decided), None)

    def _is_durable(self, job: str) -> bool:
        """Whether the two newest snapshots both know of it: the newest may turn out to be broken."""
        newest = self._store.entries()[-2:]
        return len(newest) == 2 and all(job in decided_jobs_in(entry.facts) for entry in newest)

    def put_off(self) -> None:
        """Look again after a pause: each try drops what was read ahead."""
        self._looked_at = time.monotonic() + _RETRY_SECONDS

    def take(self, offer: Offer | Refusal, pace: Pace, stop: threading.Event) -> None:
        """Numbered as above: adopted, refused, or put off. A job's own refusal is told, and no longer waited for. No
        other thread uses the source meanwhile.

        Raises as `Checkpointing.commit_now` but for `OSError`, and `SourceUnavailable`, with nothing changed.
        """
        # 1.
        self._learner.discard_pending()
        try:
            self._checkpoints.commit_now()
        except OSError as error:  # a full disk stops no learning, and the offer can wait
            self.put_off()
            self._observer.warned(f"the offer of {offer.job} waits for the disk: {error}")
            return
        fault_point("adopt.begun")
        if isinstance(offer, Refusal):
            self._refuse(offer, str(offer.facts.get("why")), told_as="restructuring_refused")
            return
        # 2.
        try:
            snapshot = self._offers.load(offer)
        except NotWhole as problem:
            self._refuse(offer, f"it is not whole: {problem.why}")
            return
        why = self._why_not(snapshot)
        if why is not None:
            self._refuse(offer, why)
            return
        offsets = self._offsets_of(snapshot)
        try:
            way_back = self._way_back(snapshot, offsets)
        except LogTruncated as problem:  # between this look and the one before
            self._refuse(offer, f"the log cannot be learnt again from there: {problem}")
            return
        why = why_not_caught_up(way_back, pace)
        if why is not None:
            self._refuse(offer, why)
            return
        # 3.
        # the parent's own, where it was written while a fall-back or another adoption was being learnt again
        told, told_since = ToldBefore(), snapshot.facts.get("told_since") or snapshot.facts.get("report_positions")
        if self._reports is not None:
            told = self._reports.read_back(told_since, stop)
        # 4.
        parent = cast(int, snapshot.state["records_consumed"])
        expected = expected_seconds(way_back, pace)
        decision: dict[str, Json] = {"kind": "adoption", "job": offer.job, "parent_records": parent}
        try:
            self._learner.adopt(snapshot.state, decision, told.decisions)
        except UserError as error:
            self._refuse(offer, str(error))
            return
        fault_point("adopt.loaded")
        # 5.
        self._checkpoints.tell_event(
            "adopted",
            offer.job,
            {
                **offer.facts,
                "parent_records": parent,
                "records_to_relearn": way_back.records_to_relearn,
                "expected_seconds": None if expected is None else round(expected, 1),
            },
        )
        self._checkpoints.go_back(
            offsets, last_records_in(snapshot.facts), told, told_since, trigger=str(offer.facts.get("kind", "manual"))
        )
        fault_point("adopt.committed")
        self._observer.adopted(self._learner, str(offer.facts.get("kind")), expected)

    def _why_not(self, snapshot: Snapshot) -> str | None:
        """One line; None: it may be adopted."""
        facts, learner = snapshot.facts, self._learner
        for name, ours in (
            ("stream", self._facts.stream),
            ("branch", self._facts.branch),
            ("state_id", self._facts.state_id),
        ):
            if facts.get(name) != ours:
                return f"it was made of another state: {name} {facts.get(name)!r}, this one is {ours!r}"
        made_with = decided_jobs_in(facts)
        for decision in learner.decisions:
            if decision["kind"] == "adoption" and decision["job"] not in made_with:
                return f"{decision['job']} was adopted since its parent was written: {AGAIN}"
        if cast(int, snapshot.state["records_consumed"]) > learner.records_consumed:
            return "its parent is ahead of this state, which has fallen back since"
        if snapshot.state.get("erasures", []) != learner.erasures.state():
            return f"a subject was erased since its parent was written: {AGAIN}"
        gaps = find_gaps(
            facts,
            self._source,
            snapshot.offsets,
            cluster_id=self._facts.cluster_id,
            topic_id=self._facts.topic_id,
        )
        return f"the log cannot be learnt again from there: {gaps[0].why}" if gaps else None

    def _offsets_of(self, snapshot: Snapshot) -> dict[Partition, int]:
        """Where to read on from there; a partition that came since, from its beginning."""
        beginnings = self._source.beginning_offsets()
        return {**beginnings, **{p: offset for p, offset in snapshot.offsets.items() if p in beginnings}}

    def _way_back(self, snapshot: Snapshot, offsets: Mapping[Partition, int]) -> WayBack:
        """From the parent's place, `offsets`. Raises `SourceUnavailable` and `LogTruncated`."""
        retention_seconds = None
        try:
            retention_seconds = self._source.retention_seconds()
        except UserError as problem:  # an ACL that was taken away since the start ends no learning, nor an adoption
            if not self._has_warned_of_retention:
                self._has_warned_of_retention = True
                self._observer.warned(
                    f"whether the log keeps its records until an adoption is caught up with is not known: {problem}"
                )
        return measure_way_back(
            self._source,
            offsets,
            self._checkpoints.offsets,
            records_to_relearn=self._learner.records_consumed - cast(int, snapshot.state["records_consumed"]),
            retention_seconds=retention_seconds,
            now_seconds=time.time(),
        )

    def _refuse(self, offer: Offer | Refusal, why: str, *, told_as: str = "offer_refused") -> None:
        """Recorded, so that it is refused once, and told."""
        kind = str(offer.facts.get("kind"))
        self._learner.refuse(
            {"kind": "refusal", "job": offer.job, "why": why},
            requested_at=offer.facts.get("requested_at"),
            base_is_lost=offer.facts.get("base_is_lost") is True,
        )
        self._checkpoints.tell_event(told_as, offer.job, {**offer.facts, "why": why})
        self._checkpoints.commit_soon()
        fault_point("refusal.committed")
        what = f"the offer of {offer.job}" if told_as == "offer_refused" else offer.job
        self._observer.warned(f"{what} was refused: {why}")
        self._observer.refused(kind)
