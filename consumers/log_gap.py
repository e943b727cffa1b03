"""Where the log no longer goes on from what a state has learnt: what is gone, and from where one could go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.manifest_facts import last_records_in
from consumers.record_source import LogTruncated, RecordSource, record_checksum
from pipeline.record import Partition
from pipeline.state import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One partition's break."""

    partition: Partition
    expected_offset: int  # the next record that the state needs
    next_offset: int  # where the learner would go on
    lost_records: int | None  # never learnt and gone; None: nobody can know
    why: str  # one line

    @property
    def as_json(self) -> list[Json]:
        """[topic, partition, expected offset, next offset]: a recorded decision."""
        return [self.partition.topic, self.partition.number, self.expected_offset, self.next_offset]


class LogGap(LogTruncated):
    """The log does not go on where a state ends, and nobody has said that this is to be borne."""

    def __init__(self, gaps: Sequence[Gap]) -> None:
        super().__init__(
            f"{'; '.join(gap.why for gap in gaps)}; go on without what is gone with --accept-gap, "
            "or learn what is there from its beginning with another --state"
        )
        self.gaps = tuple(gaps)


def find_gaps(
    facts: Mapping[str, Json],
    source: RecordSource,
    offsets: Mapping[Partition, int],
    *,
    cluster_id: str,
    topic_id: str,
) -> list[Gap]:
    """Where the log differs from the one that the state of these facts and offsets was learnt from.

    1. Another cluster, or a topic that was made anew, holds another log: offsets mean nothing there, so one would go on
       from its beginning (records that were learnt before are known by their ids).
    2. Retention deleted what was not yet learnt, or the log ends before what was learnt.
    3. The last record consumed is another one than was learnt: a tail was lost and written anew.
    """
    beginnings, ends = source.beginning_offsets(), source.end_offsets()
    # 1.
    another = _another_log(facts, cluster_id=cluster_id, topic_id=topic_id)
    if another is not None:
        return [
            Gap(
                partition=partition,
                expected_offset=offsets.get(partition, 0),
                next_offset=beginning,
                lost_records=None,
                why=f"{partition} {another}",
            )
            for partition, beginning in sorted(beginnings.items())
        ]
    gaps = []
    # Of a partition that came since nothing was learnt: it is needed from 0 on.
    for partition, offset in sorted({**dict.fromkeys(beginnings, 0), **offsets}.items()):
        # 2.
        beginning, end = beginnings.get(partition, 0), ends.get(partition, 0)
        if offset > end:
            gaps.append(
                Gap(
                    partition=partition,
                    expected_offset=offset,
                    next_offset=end,
                    lost_records=0,
                    why=f"{partition} ends at offset {end}, before this state's offset {offset}: the log lost its tail",
                )
            )
        elif offset < beginning:
            gaps.append(
                Gap(
                    partition=partition,
                    expected_offset=offset,
                    next_offset=beginning,
                    lost_records=beginning - offset,
                    why=f"{partition} begins at offset {beginning}, but this state needs it from {offset}: "
                    "retention deleted what was not yet learnt",
                )
            )
    # 3.
    broken = {gap.partition for gap in gaps}
    for partition, (offset, checksum) in last_records_in(facts).items():
        if partition in broken or partition not in beginnings or offset < beginnings[partition]:
            continue  # retention has deleted it: nothing to compare
        record = source.read_one(partition, offset)
        if record is None or record_checksum(record) != checksum:
            gaps.append(
                Gap(
                    partition=partition,
                    expected_offset=offsets[partition],
                    next_offset=offsets[partition],
                    lost_records=None,
                    why=f"the record at {partition} offset {offset} is not the one this state has learnt: "
                    "the log was rewritten",
                )
            )
    return gaps


def _another_log(facts: Mapping[str, Json], *, cluster_id: str, topic_id: str) -> str | None:
    if facts.get("cluster_id") != cluster_id:
        return (
            f"was learnt on Kafka cluster {facts.get('cluster_id')}, these brokers belong to {cluster_id}: "
            "point --bootstrap-servers at the old cluster"
        )
    if facts.get("topic_id") != topic_id:
        return f"was made anew since this state was written (topic id {topic_id}, the state's {facts.get('topic_id')})"
    return None


def are_gaps(value: Any) -> bool:
    """Whether it is [[topic, partition, offset, offset], ...], as `Gap.as_json` makes it."""
    return isinstance(value, list) and all(
        isinstance(entry, list) and [type(part) for part in entry] == [str, int, int, int] for entry in value
    )
