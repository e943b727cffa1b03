from __future__ import annotations

from benchmarks.epoch_source import EpochSource
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from pipeline.record import Partition

TOPIC = "t"
PLACE = Partition(TOPIC, 0)


def source(records: int, step_ends: list[int], epochs: int) -> EpochSource:
    log = InMemoryLog(TOPIC)
    for number in range(records):
        log.append(str(number).encode())
    return EpochSource(InMemoryRecordSource(log), step_ends, epochs)


def everything(of: EpochSource, max_records: int) -> tuple[list[int], list[int]]:
    """Offsets and contents, to the end."""
    offsets, contents = [], []
    while records := of.poll(max_records, 0.0):
        offsets += [record.offset for record in records]
        contents += [int(record.value or b"") for record in records]
    return offsets, contents


def test_each_step_comes_so_often_before_the_next_one() -> None:
    for max_records in (1, 2, 100):
        offsets, contents = everything(source(5, [2, 5], 3), max_records)
        assert contents == [0, 1] * 3 + [2, 3, 4] * 3
        assert offsets == list(range(15))


def test_it_goes_on_from_any_offset() -> None:
    of = source(5, [2, 5], 3)
    assert of.beginning_offsets() == {PLACE: 0}
    assert of.end_offsets() == {PLACE: 15}
    of.poll(4, 0.0)
    for position, content in ((0, 0), (5, 1), (6, 2), (10, 3), (14, 4)):
        of.seek({PLACE: position})
        assert of.positions() == {PLACE: position}
        one = of.read_one(PLACE, position)
        (polled,) = of.poll(1, 0.0)
        assert one == polled
        assert (polled.offset, polled.value) == (position, str(content).encode())
    assert of.read_one(PLACE, 15) is None
    assert of.poll(10, 0.0) == []
