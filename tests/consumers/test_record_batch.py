"""Batches read straight into our records: by hand, and beside the client's own reader."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from consumers.record_batch import records_in
from pipeline.record import Record

PROPERTY = settings(max_examples=300)

# length 17, attributes, +1 ms, offset + 2, key "k", value "val", 2 headers: "h" = "x", "n" = null
ONE = bytes([17 << 1, 0, 1 << 1, 2 << 1, 1 << 1]) + b"k" + bytes([3 << 1]) + b"val" + bytes([2 << 1, 1 << 1]) + b"h"
ONE += bytes([1 << 1]) + b"x" + bytes([1 << 1]) + b"n" + bytes([1])


def read(data: bytes, count: int = 1, append_timestamp_ms: int | None = None) -> list[Record]:
    return records_in(
        data,
        count,
        topic="t",
        partition=3,
        base_offset=100,
        base_timestamp_ms=5000,
        append_timestamp_ms=append_timestamp_ms,
    )


def test_a_record_by_hand() -> None:
    headers = (("h", b"x"), ("n", None))
    assert read(ONE) == [Record("t", 3, 102, b"val", b"k", headers, 5001)]
    assert read(ONE + ONE, 2, append_timestamp_ms=7)[1] == Record("t", 3, 102, b"val", b"k", headers, 7)
    tombstone = bytes([6 << 1, 0, 0, 0, 1, 1, 0])
    assert read(tombstone) == [Record("t", 3, 100, None, None, (), 5000)]
    assert read(b"", 0) == []


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (ONE[:-1], 1),  # cut
        (ONE + b"\0", 1),  # bytes after it
        (ONE, 2),  # fewer than it says
        (bytes([16 << 1]) + ONE[1:], 1),  # ends later than it says
        (bytes([18 << 1]) + ONE[1:] + b"\0", 1),  # ends earlier
        (ONE[:1] + b"\x01" + ONE[2:], 1),  # attributes that nobody knows
        (ONE[:4] + b"\x03" + ONE[5:], 1),  # a key of -2 bytes
        (ONE[:10] + b"\x01" + ONE[11:], 1),  # -1 headers
        (ONE[:11] + b"\x01" + ONE[12:], 1),  # a name that is null
        (ONE[:12] + b"\xff" + ONE[13:], 1),  # a name that is not UTF-8
        (b"\xff" * 12, 1),  # a number that does not end
    ],
)
def test_what_is_laid_out_in_another_way_is_refused(data: bytes, count: int) -> None:
    with pytest.raises((ValueError, IndexError)):
        read(data, count)


_bytes = st.none() | st.binary(max_size=200)
_record = st.tuples(
    st.integers(0, 2**41),
    _bytes,
    _bytes,
    st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=80), _bytes), max_size=4),
)


@PROPERTY
@given(records=st.lists(_record, min_size=1, max_size=5))
def test_the_clients_own_reader_reads_the_same(records: list[tuple[int, Any, Any, list[tuple[str, Any]]]]) -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1_000_000)
    for offset, (timestamp_ms, key, value, headers) in enumerate(records):
        builder.append(offset, timestamp_ms, key, value, headers)
    data = bytes(builder.build())
    batch = DefaultRecordBatch(data)
    ours = records_in(
        data[DefaultRecordBatch.HEADER_STRUCT.size :],
        batch.records_count,
        topic="t",
        partition=0,
        base_offset=batch.base_offset,
        base_timestamp_ms=batch.first_timestamp,
        append_timestamp_ms=None,
    )
    assert [(r.offset, r.timestamp_ms, r.key, r.value, list(r.headers)) for r in ours] == [
        (r.offset, r.timestamp, r.key, r.value, r.headers) for r in batch
    ]
    assert [record.value for record in ours] == [value for _, _, value, _ in records]


@PROPERTY
@given(place=st.integers(0, 200), byte=st.integers(0, 255), cut=st.none() | st.integers(0, 200))
def test_of_broken_bytes_only_its_own_errors_come(place: int, byte: int, cut: int | None) -> None:
    data = bytearray(ONE * 3)
    data[place % len(data)] = byte
    if cut is not None:
        del data[cut % len(data) :]
    with suppress(ValueError, IndexError):
        read(bytes(data), 3)
