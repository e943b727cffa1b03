"""One consolidation or expansion, from a stream's snapshots and topics to an offer that its learner adopts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from consumers.base_snapshots import new_classes
from consumers.job_kinds import Given, JobKind
from consumers.log_gap import find_gaps
from consumers.record_source import LogTruncated, ReadingStopped, RecordSource, read_records
from consumers.requested_jobs import request_facts
from consumers.saved_job import SavedJob
from model_store.durable_files import remove_folder
from model_store.fault_points import fault_point
from model_store.manifest import NotWhole
from model_store.offers import OfferStore
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.device import choose_device
from pipeline.erasure import Erasures
from pipeline.evaluation.hold_out import HoldOut, evaluate_hold_out
from pipeline.record import Partition
from pipeline.restructuring.acceptance import AcceptanceSettings, Judgement, judgeable, judged
from pipeline.restructuring.progress import Progress
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.replaced_network import with_network
from pipeline.restructuring.trigger import Kind
from pipeline.sample import Sample
from pipeline.settings import LearnerSettings
from pipeline.state import Json, StateTree
from pipeline.stream_learner import StreamLearner, spec_of
from pipeline.user_error import UserError


def job_name(kind: Kind, parent: SnapshotEntry) -> str:
    """By the parent's sequence, which every commit raises: what is decided about an offer says nothing of the next."""
    return f"{kind}-{parent.sequence}"


class SnapshotLost(UserError):
    """One that a job begins with is not whole, or was pruned meanwhile."""

    def __init__(self, entry: SnapshotEntry, why: str) -> None:
        super().__init__(
            f"snapshot {entry.sequence}, which the job begins with, is not whole, or was pruned meanwhile ({why}); run "
            "it again, or name another one with --base"
        )
        self.entry = entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of a network."""

    sub_modules: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """What came of a job."""

    job: str
    kind: Kind
    judgement: Judgement
    new_classes: tuple[str, ...]
    unlabelled_rows: int  # that it worked on; 0: an expansion that went on without
    from_reservoir: bool  # the log no longer had the new classes' records
    before: Size  # the parent's network
    after: Size
    did_without: tuple[str, ...]  # what was asked for and could not be done, for a person
    seconds: float

    @property
    def as_json(self) -> dict[str, Json]:
        """For events: what the offer says of itself."""
        return {
            "new_classes": list(self.new_classes),
            "unlabelled_rows": self.unlabelled_rows,
            "from_reservoir": self.from_reservoir,
            "seconds": round(self.seconds, 1),
            "sub_modules_before": self.before.sub_modules,
            "sub_modules_after": self.after.sub_modules,
            "parameters_before": self.before.parameters,
            "parameters_after": self.after.parameters,
            "average_accuracy_before": self.judgement.average_before,
            "average_accuracy_after": self.judgement.average_after,
            "reasons": list(self.judgement.reasons),
            "did_without": list(self.did_without),
        }


class RestructuringJob:
    """Begun again after a kill or a stop it goes on from what it saved, and comes to the same result. (On several
    partitions records may come in another order; then it is begun anew.)

    1. The parent's state, and where the kind of job has an old teacher that of its base: the last snapshot before the
       new classes' first record. The log must be the parent's, and its hold-outs enough to judge by.
    2. The new classes' records, read again from the log between the two, and all unlabelled records that were there
       when the job first began; neither what the hold-out chooses nor what was erased. Where retention has cut the log,
       the reservoir's samples.
    3. The network: what is taught, and how it is built, is the kind's own (`job_kinds.py`).
    4. Parent and result judged on the parent's hold-outs.
    5. Accepted: a whole state at the parent's offsets, offered. Else, where the learner waits for an answer, a refusal.
    """

    def __init__(
        self,
        *,
        store: SnapshotStore,
        offers: OfferStore,
        work: Path,
        samples: RecordSource,
        unlabelled: RecordSource | None,
        kind: JobKind,
        acceptance: AcceptanceSettings,
        cluster_id: str,
        topic_id: str,
        device: str = "auto",
    ) -> None:
        """`work`: a folder for what is begun. `unlabelled` None: there is no such topic, and the kind can do without.
        `cluster_id`, `topic_id`: of the samples. The stream's own settings are those that the parent was learnt with.
        """
        assert unlabelled is not None or not kind.needs_unlabelled, f"{kind.kind} needs unlabelled records"
        self._store = store
        self._offers = offers
        self._work = work
        self._samples = samples
        self._unlabelled = unlabelled
        self._kind = kind
        self._acceptance = acceptance
        self._cluster_id = cluster_id
        self._topic_id = topic_id
        self._device = device

    def run(
        self, parent_entry: SnapshotEntry, base_entry: SnapshotEntry, *, progress: Progress, stop: threading.Event
    ) -> JobReport | None:
        """Numbered as above; None where `stop` ended it, with what was done so far saved.

        `Refused` where no good network could come of it; `SnapshotLost`, `SourceUnavailable`, `LogTruncated`,
        `OSError`.
        """
        began = time.monotonic()
        # 1.
        kind, parent = self._kind, self._loaded(parent_entry)
        base = self._loaded(base_entry) if kind.needs_old_teacher else None
        learner_settings = LearnerSettings.model_validate(parent.facts["settings"]).model_copy(
            update={"device": self._device}
        )
        job = job_name(kind.kind, parent_entry)
        gaps = find_gaps(
            parent.facts, self._samples, parent.offsets, cluster_id=self._cluster_id, topic_id=self._topic_id
        )
        if gaps:
            raise LogTruncated(f"{gaps[0].why}; a job needs the log that its snapshots were learnt from")
        new = new_classes(parent_entry, base_entry)
        before, size_before = _looked_at(parent.state, learner_settings)
        if before and not judgeable(before, self._acceptance):
            raise Refused(judged(before, before, self._acceptance).reasons[0])
        # 2.
        saved = SnapshotStore(self._work / job)
        begun = saved.newest_whole().snapshot if saved.folder.is_dir() else None
        until = self._unlabelled_ends() if begun is None else begun.offsets
        reader = _Reader(parent, learner_settings, stop)
        is_cut = self._is_cut(base_entry)
        try:
            # 3.
            making = kind.begin(
                Given(
                    parent=parent.state,
                    base=None if base is None else base.state,
                    new_classes=new,
                    records=None if is_cut else reader.labelled(self._samples, base_entry.offsets, new),
                    unlabelled=() if self._unlabelled is None else reader.unlabelled(self._unlabelled, until),
                    learner_settings=learner_settings,
                    device=choose_device(self._device),
                )
            )
        except ReadingStopped:
            return None
        # what was saved under other settings is of no use: begun anew
        if begun is not None and begun.state["of"] == making.state()["of"]:
            making.load_state(begun.state)
        facts: dict[str, Json] = {"parent": list(parent_entry.number), "base": list(base_entry.number)}
        saving = SavedJob(saved, making, until, facts, progress)
        saving.save()  # from now on both snapshots are kept (`base_snapshots.py`)
        network = making.run(progress=saving, stop=stop.is_set)
        if network is None:
            saving.save()
            return None
        state = with_network(parent.state, network, learner_settings)
        fault_point("job.made")
        # 4.
        after, size_after = _looked_at(state, learner_settings)
        has_grown = size_after.sub_modules > size_before.sub_modules
        judgement = judged(before, after, self._acceptance, has_grown=has_grown)
        report = JobReport(
            job=job,
            kind=kind.kind,
            judgement=judgement,
            new_classes=tuple(new),
            unlabelled_rows=kind.taken(reader.unlabelled_rows),
            from_reservoir=is_cut,
            before=size_before,
            after=size_after,
            did_without=tuple(making.did_without()),
            seconds=time.monotonic() - began,
        )
        # 5.
        asked = request_facts(parent_entry, kind.kind)
        if judgement.accepted:
            result = Snapshot(generation=0, sequence=0, state=state, offsets=parent.offsets, facts=parent.facts)
            self._offers.put(job, kind.kind, parent, result, {**report.as_json, **asked})
        elif asked:
            why = f"worse than what there is: {'; '.join(judgement.reasons)}"
            self._offers.refuse(job, kind.kind, why, {**report.as_json, **asked})
        fault_point("job.answered")
        remove_folder(saved.folder)
        return report

    def _loaded(self, entry: SnapshotEntry) -> Snapshot:
        try:
            return self._store.load(entry)
        except NotWhole as problem:
            raise SnapshotLost(entry, problem.why) from problem

    def _unlabelled_ends(self) -> Mapping[Partition, int]:
        return {} if self._unlabelled is None else self._unlabelled.end_offsets()

    def _is_cut(self, base: SnapshotEntry) -> bool:
        if base.facts.get("topic_id") != self._topic_id:
            return True
        beginnings = self._samples.beginning_offsets()
        return any(beginning > base.offsets.get(partition, 0) for partition, beginning in beginnings.items())


class _Reader:
    """What a job may read of the log: nothing held out, nothing erased, of the stream's kind."""

    def __init__(self, parent: Snapshot, settings: LearnerSettings, stop: threading.Event) -> None:
        self.unlabelled_rows = 0  # read so far
        self._stop = stop
        self._parent = parent
        self._settings = settings
        self._spec = spec_of(parent.state)
        self._hold_out = HoldOut(settings.hold_out)  # which samples it chooses hangs on no state
        self._erasures = Erasures()
        self._erasures.load_state(cast(Json, parent.state.get("erasures", [])))

    def labelled(
        self, source: RecordSource, begin: Mapping[Partition, int], new: list[str]
    ) -> Iterator[tuple[npt.NDArray[np.generic], str]]:
        """Records of these classes up to the parent's offsets."""
        ends = {partition: self._parent.offsets.get(partition, 0) for partition in source.partitions}
        begins = {partition: min(begin.get(partition, 0), end) for partition, end in ends.items()}
        wanted, seen = set(new), set[tuple[str, str]]()
        for sample in self._samples(source, begins, ends, labelled=True):
            if sample.label in wanted and (sample.source, sample.id) not in seen:
                seen.add((sample.source, sample.id))  # a repeat is dropped, as the learner does
                yield sample.x, sample.label

    def unlabelled(self, source: RecordSource, until: Mapping[Partition, int]) -> Iterator[npt.NDArray[np.generic]]:
        """All that still lies there before these offsets."""
        beginnings = source.beginning_offsets()
        ends = {partition: max(until.get(partition, 0), beginning) for partition, beginning in beginnings.items()}
        for sample in self._samples(source, beginnings, ends, labelled=False):
            self.unlabelled_rows += 1
            yield sample.x

    def _samples(
        self, source: RecordSource, begin: Mapping[Partition, int], end: Mapping[Partition, int], *, labelled: bool
    ) -> Iterator[Sample]:
        decode = RecordDecoder(self._settings.input, labelled=labelled).decode
        for record in read_records(source, begin, end, self._stop):
            sample = decode(record).sample
            if sample is None or sample.spec != self._spec:
                continue
            key = self._hold_out.key(sample)
            if self._hold_out.chooses_key(key):
                continue
            if self._erasures and self._erasures.covers(key, record.log_partition, record.offset):
                continue
            yield sample


def _looked_at(state: StateTree, settings: LearnerSettings) -> tuple[dict[str, tuple[float, int]], Size]:
    """{class: (accuracy, n)} on the state's own hold-outs, and how large its network is."""
    learner = StreamLearner(settings)
    learner.load_state(state)
    if learner.learner is None:
        return {}, Size(sub_modules=0, parameters=0)
    hold_out: HoldOut = learner.hold_out
    accuracies = evaluate_hold_out(hold_out, learner.learner.class_names, learner.learner.predict_columns)
    size = Size(sub_modules=learner.learner.sub_modules_count, parameters=learner.learner.parameters_count)
    return dict(accuracies), size
