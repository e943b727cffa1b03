"""Puts a rewind together from its parts: what `palimpsest learn --from-snapshot` and `--from-offsets` do first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from kafka import TopicPartition

from consumers import kafka_connection, topics
from consumers.commit_log import Committed
from consumers.kafka_commit_log import KafkaCommitLog
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.rewind import rewind_to_offsets, rewind_to_snapshot
from consumers.state_lock import shared_lock
from consumers.topics import SamplesTopic
from deploy.learning import environment
from deploy.process_facts import process_facts
from deploy.settings import Settings
from deploy.state_folder import make_state_folder
from model_store.snapshot_store import SnapshotStore
from pipeline.device import configure_torch
from pipeline.record import Partition
from pipeline.user_error import UserError


def rewind(
    *,
    stream: str,
    branch: str,
    state: Path,
    settings: Settings,
    from_state: Path | None,
    from_snapshot: str | None,
    from_offsets: str | None,
    stop: threading.Event | None = None,
) -> bool:
    """Put the first snapshot into the empty `state`; False: it has begun at this very place before.

    Either from a snapshot of another state, or with a new model from offsets on. `stop` ends a wait for brokers or a
    lock, with one of the last three. Raises `UserError`, `BrokerUnavailable`, `SourceUnavailable`, `LockStopped`.
    """
    if (from_state is None) != (from_snapshot is None) or (from_offsets is None) == (from_snapshot is None):
        raise UserError("give --from-state DIR and --from-snapshot N together, or --from-offsets alone")
    topics.check_stream_name(stream)
    with ExitStack() as stack, kafka_connection.hearing(stop):
        make_state_folder(state)
        stack.enter_context(shared_lock(state, stop=stop))
        store = SnapshotStore(state / "snapshots")
        try:
            if from_state is not None and from_snapshot is not None:
                if not (from_state / "snapshots").is_dir():
                    raise UserError(f"{from_state} holds no snapshots; check --from-state")
                # What an erasure is just about to remove must not live on in a copy.
                stack.enter_context(shared_lock(from_state, stop=stop))
                origin = SnapshotStore(from_state / "snapshots")
                return rewind_to_snapshot(
                    store,
                    origin,
                    from_snapshot,
                    stream=stream,
                    branch=branch,
                    settings=settings.learner,
                    committed=lambda: _committed(
                        settings.kafka, stream, branch, topics.check_samples_topic(settings.kafka, stream)
                    ),
                )
            assert from_offsets is not None
            return _to_offsets(store, from_offsets, stream=stream, branch=branch, settings=settings)
        except OSError as error:
            raise UserError(
                f"the first snapshot cannot be written to {state}: {error}; give another --state"
            ) from error


def _to_offsets(store: SnapshotStore, where: str, *, stream: str, branch: str, settings: Settings) -> bool:
    configure_torch(settings.learner)
    samples = topics.check_samples_topic(settings.kafka, stream)
    with KafkaRecordSource(settings.kafka, samples.partitions) as source:
        return rewind_to_offsets(
            store,
            where,
            process=process_facts(samples, stream=stream, branch=branch, environment=environment(settings)),
            settings=settings.learner,
            beginning=source.beginning_offsets,
            end=source.end_offsets,
            at_time=offsets_at_time(settings.kafka, samples),
            committed=lambda: _committed(settings.kafka, stream, branch, samples),
        )


def _committed(settings: KafkaSettings, stream: str, branch: str, samples: SamplesTopic) -> Committed | None:
    with KafkaCommitLog(settings, stream, branch, samples.partitions) as commit_log:
        return commit_log.committed()


def offsets_at_time(settings: KafkaSettings, samples: SamplesTopic) -> Callable[[int], Mapping[Partition, int]]:
    """`at_time(ms)`: the first offset of each partition whose record is not older; none: the partition is left out."""

    def at_time(milliseconds: int) -> Mapping[Partition, int]:
        wanted = {TopicPartition(p.topic, p.number): milliseconds for p in samples.partitions}
        with kafka_connection.admin(settings) as admin, kafka_connection.talking(settings):
            found = admin.list_partition_offsets(wanted)
        return {Partition(tp.topic, tp.partition): there.offset for tp, there in found.items() if there.offset >= 0}

    return at_time
