"""Puts a job together from its parts: what the worker runs, and `palimpsest consolidate` and `palimpsest expand`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from consumers import topics
from consumers.base_snapshots import base_of, begun_jobs, class_names, new_classes
from consumers.job_kinds import ConsolidationKind, ExpansionKind, JobKind
from consumers.kafka_record_source import KafkaRecordSource
from consumers.manifest_facts import decided_jobs_in
from consumers.requested_jobs import requested_job
from consumers.restructuring_job import JobReport, RestructuringJob, job_name
from consumers.state_lock import job_lock, shared_lock
from consumers.topics import UnlabelledMissing
from deploy.settings import Settings
from model_store.durable_files import remove_folder
from model_store.offers import OfferStore
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.device import configure_torch
from pipeline.record import Partition
from pipeline.restructuring.progress import Progress
from pipeline.restructuring.trigger import Kind
from pipeline.settings import LearnerSettings
from pipeline.user_error import UserError

COMMANDS = {Kind.CONSOLIDATION: "palimpsest consolidate", Kind.EXPANSION: "palimpsest expand"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a job is, and what it begins with."""

    kind: Kind
    parent: SnapshotEntry
    base: SnapshotEntry

    @property
    def job(self) -> str:
        return job_name(self.kind, self.parent)

    @property
    def new_classes(self) -> list[str]:
        return new_classes(self.parent, self.base)


def choose(state: Path, kind: Kind, *, stream: str, base: int | None = None) -> Chosen:
    """What an interrupted job of this kind began with; else the newest snapshot, and that of sequence `base`, or where
    the learner asks for such a job the one that it names, or the one before the newest classes. Raises `UserError`."""
    store = SnapshotStore(state / "snapshots")
    entries = store.entries()
    if not entries:
        raise UserError(f"{state} holds no snapshots; `palimpsest learn --state {state}` writes them")
    parent = entries[-1]
    if parent.facts.get("stream") != stream:
        raise UserError(f"{state} holds the state of stream {parent.facts.get('stream')!r}, not {stream!r}")
    by_number = {entry.number: entry for entry in entries}
    decided = decided_jobs_in(parent.facts)
    for begun in reversed(begun_jobs(state / "jobs")):
        if base is None and begun.parent in by_number and begun.base in by_number and begun.folder.name not in decided:
            chosen = Chosen(kind=kind, parent=by_number[begun.parent], base=by_number[begun.base])
            if chosen.job == begun.folder.name:
                return chosen
    if base is None:
        found = _asked_for(entries, kind) or base_of(entries, parent)
        if found is None:
            raise UserError(
                f"of the snapshots in {state} none knows fewer classes than the newest ({len(class_names(parent))}), "
                "so no class is new: raise snapshots.keep_bases, or wait for new classes"
            )
    else:
        named = [entry for entry in entries if entry.sequence == base]
        if not named:
            kept = ", ".join(str(entry.sequence) for entry in entries)
            raise UserError(f"{state} holds no snapshot {base}; there are {kept} (`palimpsest snapshots`)")
        found = named[-1]
    return Chosen(kind=kind, parent=parent, base=found)


def restructure(
    chosen: Chosen,
    *,
    stream: str,
    state: Path,
    settings: Settings,
    unlabelled: str | None,
    progress: Progress,
    stop: threading.Event,
) -> JobReport | None:
    """Connect and do the job; `unlabelled`: another topic than the stream's.

    Raises as `RestructuringJob.run`, `UnlabelledMissing`, and `UserError` where there is another job.
    """
    stored = LearnerSettings.model_validate(chosen.parent.facts["settings"])
    device = settings.learner.device
    configure_torch(stored.model_copy(update={"device": device, "threads": settings.learner.threads}))
    with ExitStack() as stack:
        stack.enter_context(shared_lock(state))
        (state / "jobs").mkdir(exist_ok=True)
        stack.enter_context(job_lock(state / "jobs"))
        _remove_superseded(state / "jobs", chosen)
        kind = job_kind(chosen.kind, settings)
        samples = topics.check_samples_topic(settings.kafka, stream)
        partitions = _unlabelled_partitions(settings, kind, stream, unlabelled)
        job = RestructuringJob(
            store=SnapshotStore(state / "snapshots"),
            offers=OfferStore(state / "offers"),
            work=state / "jobs",
            samples=stack.enter_context(KafkaRecordSource(settings.kafka, samples.partitions, samples.topic_id)),
            unlabelled=stack.enter_context(KafkaRecordSource(settings.kafka, partitions)) if partitions else None,
            kind=kind,
            acceptance=settings.acceptance,
            cluster_id=samples.cluster_id,
            topic_id=samples.topic_id,
            device=device,
        )
        return job.run(chosen.parent, chosen.base, progress=progress, stop=stop)


def job_kind(kind: Kind, settings: Settings) -> JobKind:
    """With the settings of such a job."""
    match kind:
        case Kind.CONSOLIDATION:
            return ConsolidationKind(settings.consolidation)
        case Kind.EXPANSION:
            return ExpansionKind(settings.expansion)


def _asked_for(entries: Sequence[SnapshotEntry], kind: Kind) -> SnapshotEntry | None:
    """The base of the learner's request: from before all classes since the last adoption, not the newest ones alone."""
    requested = requested_job(entries)
    base = requested.base if requested is not None and requested.kind is kind else None
    # the learner may have gone back since, to before they came
    return base if base is not None and new_classes(entries[-1], base) else None


def _remove_superseded(jobs: Path, chosen: Chosen) -> None:
    """Of each kind the newest other one may be gone on with: one by hand, one that was asked for."""
    for kind in Kind:
        others = [begun for begun in begun_jobs(jobs) if begun.folder.name.startswith(f"{kind}-")]
        for begun in [begun for begun in others if begun.folder.name != chosen.job][:-1]:
            remove_folder(begun.folder)


def _unlabelled_partitions(
    settings: Settings, kind: JobKind, stream: str, unlabelled: str | None
) -> tuple[Partition, ...]:
    """Of the topic; () where the stream's own is missing, and the kind can do without."""
    try:
        return topics.check_unlabelled_topic(settings.kafka, unlabelled or topics.unlabelled(stream))
    except UnlabelledMissing:
        if kind.needs_unlabelled or unlabelled is not None:  # somebody who names one wants it to be there
            raise
        return ()
