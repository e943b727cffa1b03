"""Puts an erasure together from its parts: what `palimpsest erase` runs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from consumers import topics
from consumers.erasure import ErasureReport, SubjectErasure
from consumers.kafka_commit_log import KafkaCommitLog
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_reports import kafka_reports
from consumers.state_lock import exclusive_lock
from consumers.topics import MAIN_BRANCH
from deploy.process_facts import process_facts
from deploy.settings import Settings
from model_store.offers import OfferStore
from model_store.snapshot_store import SnapshotStore
from pipeline.user_error import UserError


def erase(
    *, stream: str, state: Path, subject: str, branch: str, unknown_too: bool, settings: Settings
) -> ErasureReport:
    """Lock the folder, connect, erase. Raises as `SubjectErasure.erase`, and `UserError` where somebody works on it."""
    topics.check_stream_name(stream)
    if not (state / "snapshots").is_dir():
        raise UserError(f"{state} holds no snapshots, so nothing to erase; give the --state of a learner")
    with ExitStack() as stack:
        stack.enter_context(exclusive_lock(state))
        samples = topics.check_samples_topic(settings.kafka, stream)
        speaks = branch == MAIN_BRANCH
        if speaks:
            topics.ensure_report_topics(settings.kafka, stream)
        erasure = SubjectErasure(
            store=SnapshotStore(state / "snapshots"),
            source=stack.enter_context(KafkaRecordSource(settings.kafka, samples.partitions)),
            commit_log=stack.enter_context(KafkaCommitLog(settings.kafka, stream, branch, samples.partitions)),
            facts=process_facts(samples, stream=stream, branch=branch),
            reports=kafka_reports(settings.kafka, stream=stream, branch=branch) if speaks else None,
            offers=OfferStore(state / "offers"),
        )
        return erasure.erase(subject, unknown_too=unknown_too)
