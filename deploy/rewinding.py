"""Puts a rewind together from its parts: what `palimpsest learn --from-snapshot` and `--from-offsets` do first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from kafka import TopicPartition

from consumers import kafka_connection, topics
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.manifest_facts import ProcessFacts
from consumers.rewind import rewind_to_offsets, rewind_to_snapshot
from consumers.state_lock import shared_lock
from consumers.topics import SamplesTopic
from deploy.learning import environment
from deploy.settings import Settings
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
) -> bool:
    """Put the first snapshot into the empty `state`; False: it has begun at this very place before.

    Either from a snapshot of another state, for which no broker is asked, or with a new model from offsets on.
    Raises `UserError`, `SourceUnavailable`.
    """
    if (from_state is None) != (from_snapshot is None) or (from_offsets is None) == (from_snapshot is None):
        raise UserError("give --from-state DIR and --from-snapshot N together, or --from-offsets alone")
    topics.check_stream_name(stream)
    with ExitStack() as stack:
        _make_folder(state)
        stack.enter_context(shared_lock(state))
        store = SnapshotStore(state / "snapshots")
        try:
            if from_state is not None and from_snapshot is not None:
                if not (from_state / "snapshots").is_dir():
                    raise UserError(f"{from_state} holds no snapshots; check --from-state")
                # What an erasure is just about to remove must not live on in a copy.
                stack.enter_context(shared_lock(from_state))
                origin = SnapshotStore(from_state / "snapshots")
                return rewind_to_snapshot(
                    store, origin, from_snapshot, stream=stream, branch=branch, settings=settings.learner
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
            process=ProcessFacts(
                stream=stream,
                branch=branch,
                topic=samples.topic,
                cluster_id=samples.cluster_id,
                topic_id=samples.topic_id,
                state_id="",
                environment=environment(settings),
            ),
            settings=settings.learner,
            beginning=source.beginning_offsets,
            end=source.end_offsets,
            at_time=offsets_at_time(settings.kafka, samples),
        )


def offsets_at_time(settings: KafkaSettings, samples: SamplesTopic) -> Callable[[int], Mapping[Partition, int]]:
    """`at_time(ms)`: the first offset of each partition whose record is not older; none: the partition is left out."""

    def at_time(milliseconds: int) -> Mapping[Partition, int]:
        wanted = {TopicPartition(p.topic, p.number): milliseconds for p in samples.partitions}
        with kafka_connection.admin(settings) as admin, kafka_connection.talking(settings):
            found = admin.list_partition_offsets(wanted)
        return {Partition(tp.topic, tp.partition): there.offset for tp, there in found.items() if there.offset >= 0}

    return at_time


def _make_folder(state: Path) -> None:
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to state folder {state}: {error.strerror}; give another --state") from None
