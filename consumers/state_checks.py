"""Does this state belong to this stream, this log, these settings? Asked before a learner goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from consumers.record_source import RecordSource, record_checksum
from pipeline.record import Partition
from pipeline.state import Json
from pipeline.user_error import UserError


def check_belongs(facts: Mapping[str, Json], *, stream: str, branch: str, folder: object) -> None:
    """A state of another stream or branch is refused."""
    for name, value in (("stream", stream), ("branch", branch)):
        if facts.get(name) != value:
            raise UserError(
                f"{folder} holds the state of {name} {facts.get(name)!r}, not {value!r}; give another --state"
            )


def check_log(facts: Mapping[str, Json], *, cluster_id: str, topic_id: str, topic: str) -> None:
    """A topic that was deleted and made again, or another cluster, holds another log: its offsets mean nothing here."""
    if facts.get("cluster_id") != cluster_id:
        raise UserError(
            f"this state was learnt on Kafka cluster {facts.get('cluster_id')}, the brokers belong to {cluster_id}; "
            "point --bootstrap-servers at the old cluster, or give another --state"
        )
    if facts.get("topic_id") != topic_id:
        raise UserError(
            f"topic {topic} was made anew since this state was written (topic id {topic_id}, the state's "
            f"{facts.get('topic_id')}); give another --state to learn the new one from its beginning"
        )


def check_settings(facts: Mapping[str, Json], fixed: Mapping[str, Any]) -> None:
    """A setting that shapes the model cannot change under an existing state.

    Only names that both know are compared, so that the state of a release with fewer settings still loads.
    """
    stored = cast("dict[str, Any]", facts.get("fixed_settings") or {})
    for path in sorted(fixed):
        if path in stored and stored[path] != fixed[path]:
            raise UserError(
                f"setting learner.{path} is {fixed[path]!r}, but this state was made with {stored[path]!r} and it is "
                "fixed for a state; set it back, or give another --state"
            )


def check_last_records(facts: Mapping[str, Json], source: RecordSource, offsets: Mapping[Partition, int]) -> None:
    """The log goes on from these offsets, and the last record consumed of each partition still lies there unchanged.

    A lost and rewritten tail must not pass, and neither must a stretch that retention deleted before it was learnt.
    """
    beginnings, ends = source.beginning_offsets(), source.end_offsets()
    for partition, offset in sorted(offsets.items()):
        if offset > ends.get(partition, 0):
            raise UserError(
                f"{partition} ends at offset {ends.get(partition, 0)}, before this state's offset {offset}: "
                "the log lost its tail; give another --state to learn it from its beginning"
            )
        if offset < beginnings[partition]:
            raise UserError(
                f"{partition} begins at offset {beginnings[partition]}, but this state needs it from {offset}: "
                "retention deleted what was not yet learnt; give another --state"
            )
    for topic, number, offset, checksum in cast("list[tuple[str, int, int, str]]", facts["last_records"]):
        partition = Partition(topic, number)
        if offset < beginnings[partition]:
            continue  # retention has deleted it: nothing to compare
        record = source.read_one(partition, offset)
        if record is None or record_checksum(record) != checksum:
            raise UserError(
                f"the record at {partition} offset {offset} is not the one this state has learnt: the log was "
                "rewritten; give another --state to learn it from its beginning"
            )
