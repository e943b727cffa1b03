"""Puts a consolidation together from its parts: what `palimpsest consolidate` runs."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from consumers import topics
from consumers.base_snapshots import base_of, begun_jobs, class_names, new_classes
from consumers.consolidation_job import ConsolidationJob, JobReport
from consumers.kafka_record_source import KafkaRecordSource
from consumers.manifest_facts import decided_jobs_in
from consumers.state_lock import job_lock, shared_lock
from deploy.settings import Settings
from model_store.durable_files import remove_folder
from model_store.offers import OfferStore
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.device import configure_torch
from pipeline.restructuring.progress import Progress
from pipeline.settings import LearnerSettings
from pipeline.user_error import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a job begins with."""

    parent: SnapshotEntry
    base: SnapshotEntry

    @property
    def new_classes(self) -> list[str]:
        return new_classes(self.parent, self.base)


def choose(state: Path, *, stream: str, base: int | None = None) -> Chosen:
    """What an interrupted job began with; else the newest snapshot, and the one before its newest classes, or that of
    sequence `base`. Raises `UserError`."""
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
            return Chosen(parent=by_number[begun.parent], base=by_number[begun.base])
    if base is None:
        found = base_of(entries, parent)
        if found is None:
            raise UserError(
                f"of the snapshots in {state} none knows fewer classes than the newest ({len(class_names(parent))}), "
                "so there is no old teacher: raise snapshots.keep_bases, or wait for new classes"
            )
    else:
        chosen = [entry for entry in entries if entry.sequence == base]
        if not chosen:
            kept = ", ".join(str(entry.sequence) for entry in entries)
            raise UserError(f"{state} holds no snapshot {base}; there are {kept} (`palimpsest snapshots`)")
        found = chosen[-1]
    return Chosen(parent=parent, base=found)


def consolidate(
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

    Raises as `ConsolidationJob.run`, `UnlabelledMissing`, and `UserError` where there is another job.
    """
    stored = LearnerSettings.model_validate(chosen.parent.facts["settings"])
    device = settings.learner.device
    configure_torch(stored.model_copy(update={"device": device, "threads": settings.learner.threads}))
    with ExitStack() as stack:
        stack.enter_context(shared_lock(state))
        (state / "jobs").mkdir(exist_ok=True)
        stack.enter_context(job_lock(state / "jobs"))
        others = [begun for begun in begun_jobs(state / "jobs") if begun.parent != chosen.parent.number]
        for begun in others[:-1]:  # the newest may be gone on with: one by hand, one that was asked for
            remove_folder(begun.folder)
        samples = topics.check_samples_topic(settings.kafka, stream)
        partitions = topics.check_unlabelled_topic(settings.kafka, unlabelled or topics.unlabelled(stream))
        job = ConsolidationJob(
            store=SnapshotStore(state / "snapshots"),
            offers=OfferStore(state / "offers"),
            work=state / "jobs",
            samples=stack.enter_context(KafkaRecordSource(settings.kafka, samples.partitions, samples.topic_id)),
            unlabelled=stack.enter_context(KafkaRecordSource(settings.kafka, partitions)),
            consolidation=settings.consolidation,
            acceptance=settings.acceptance,
            cluster_id=samples.cluster_id,
            topic_id=samples.topic_id,
            device=device,
        )
        return job.run(chosen.parent, chosen.base, progress=progress, stop=stop)
