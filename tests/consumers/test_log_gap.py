"""Where the log no longer goes on from what a state has learnt. (How a start bears it: test_accepted_gaps.py.)"""

from __future__ import annotations

from consumers.log_gap import Gap, LogGap, are_gaps, find_gaps
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.record_source import record_checksum
from pipeline.state import Json

IDENTITY: dict[str, Json] = {"cluster_id": "c", "topic_id": "t"}


def two_partitions(records: int = 5) -> InMemoryLog:
    log = InMemoryLog("s.samples", partitions=2)
    for partition in (0, 1):
        for number in range(records):
            log.append(b"%d/%d" % (partition, number), partition=partition)
    return log


def last_records(log: InMemoryLog, **offsets: int) -> dict[str, Json]:
    """The facts of a state that has consumed up to and with these offsets: p0=3, p1=..."""
    found: list[Json] = []
    for name, offset in offsets.items():
        partition = log.partitions[int(name[1:])]
        record = log.at(partition, offset)
        assert record is not None
        found.append([partition.topic, partition.number, offset, record_checksum(record)])
    return {"last_records": found}


def gaps(log: InMemoryLog, facts: dict[str, Json], *offsets: int, topic_id: str = "t") -> list[Gap]:
    return find_gaps(
        IDENTITY | facts,
        InMemoryRecordSource(log),
        dict(zip(log.partitions, offsets, strict=False)),
        cluster_id="c",
        topic_id=topic_id,
    )


def test_an_unchanged_log_has_none() -> None:
    log = two_partitions()
    assert gaps(log, last_records(log, p0=3, p1=4), 4, 5) == []
    assert gaps(log, last_records(log, p0=3), 4) == []  # the second partition came since
    assert gaps(log, last_records(log), 0, 0) == []


def test_offsets_past_markers_are_fine_and_a_lost_tail_of_them_is_not() -> None:
    log = two_partitions()
    facts = last_records(log, p0=4)
    log.append_marker()
    assert gaps(log, facts, 6, 0) == []
    (lost,) = gaps(log, facts, 7, 0)
    assert lost.why == "s.samples-0 ends at offset 6, before this state's offset 7: the log lost its tail"
    assert (lost.expected_offset, lost.next_offset, lost.lost_records) == (7, 6, 0)
    (lost,) = gaps(log, facts, 5, 6)  # nothing of this partition was ever learnt, only passed
    assert lost.as_json == ["s.samples", 1, 6, 5]


def test_a_rewritten_record_is_found_in_whichever_partition() -> None:
    log, other = two_partitions(), two_partitions()
    facts = last_records(log, p0=3, p1=2)
    other._records[other.partitions[1]][2] = log.append(b"another", partition=1)
    (rewritten,) = gaps(other, facts, 4, 3)
    assert rewritten.why.startswith("the record at s.samples-1 offset 2 is not the one this state has learnt")
    assert (rewritten.next_offset, rewritten.lost_records) == (3, None)


def test_what_retention_deleted_after_it_was_learnt_is_no_loss() -> None:
    log = two_partitions()
    facts = last_records(log, p0=3, p1=3)
    log.truncate_before(0, 4)
    assert gaps(log, facts, 4, 4) == []
    log.truncate_before(0, 5)
    (gone,) = gaps(log, facts, 4, 4)
    assert gone.why.startswith("s.samples-0 begins at offset 5, but this state needs it from 4: retention deleted")
    assert (gone.expected_offset, gone.next_offset, gone.lost_records) == (4, 5, 1)


def test_another_log_is_begun_at_its_beginning_whatever_the_offsets() -> None:
    log = two_partitions()
    log.truncate_before(1, 2)
    anew = gaps(log, last_records(log, p0=3, p1=3), 4, 4, topic_id="u")
    assert [(gap.partition.number, gap.next_offset) for gap in anew] == [(0, 0), (1, 2)]
    assert "s.samples-0 was made anew since this state was written (topic id u, the state's t)" in str(LogGap(anew))
    (another, _) = gaps(log, {"cluster_id": "d"}, 4, 4)
    assert "learnt on Kafka cluster d, these brokers belong to c" in another.why


def test_the_error_names_every_gap_and_the_way_out() -> None:
    log = two_partitions()
    log.truncate_before(0, 5)
    log.truncate_before(1, 5)
    message = str(LogGap(gaps(log, last_records(log), 3, 4)))
    assert "s.samples-0 begins at offset 5" in message
    assert "s.samples-1 begins at offset 5" in message
    assert "--accept-gap" in message
    assert "\n" not in message


def test_what_an_event_may_hold() -> None:
    assert are_gaps([["t", 0, 1, 2]])
    others: list[Json] = [None, {}, [["t", 0, 1]], [["t", True, 1, 2]], [1], "t"]
    assert not any(are_gaps(value) for value in others)
