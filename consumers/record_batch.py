"""The records of a batch as Kafka lays them out (message format 2), read straight into ours.

    batch  = records, one after the other
    record = length, attributes (1 byte), timestamp delta, offset delta, key, value, number of headers, headers
    header = name, value

Lengths, deltas and the number are zigzag varints; key, value and name are a length and so many bytes, and key and value
may be null (-1). See "Record" in https://kafka.apache.org/documentation/#record.

The client's own reader makes two objects of a record, with a call for each number in it: that was most of a poll.
"""

from __future__ import annotations

from pipeline.record import Record

# Most names are the same in all records of a stream. Bounded: anybody may write another name into each of them.
_NAMES_KEPT = 256
_names: dict[bytes, str] = {}


def records_in(
    data: bytes,
    count: int,
    *,
    topic: str,
    partition: int,
    base_offset: int,
    base_timestamp_ms: int,
    append_timestamp_ms: int | None,
) -> list[Record]:
    """The `count` records of a batch; `data` is what follows its header, decompressed.

    `append_timestamp_ms`: the log's own time, where the topic says that it counts in the place of the records'.
    Raises `ValueError` (a `UnicodeDecodeError` is one) or `IndexError` on whatever is laid out in another way.
    """
    records: list[Record] = []
    at = 0
    for _ in range(count):
        size, at = _varint(data, at)
        end = at + size
        if size < 0 or end > len(data) or data[at]:
            raise ValueError(f"a record of {size} bytes at byte {at} of {len(data)}, attributes {data[at]}")
        delta_ms, at = _varint(data, at + 1)
        delta, at = _varint(data, at)
        key, at = _nullable(data, at)
        value, at = _nullable(data, at)
        number, at = _size(data, at)
        headers: list[tuple[str, bytes | None]] = []
        for _ in range(number):
            # As `_size` and `_nullable` would, without calls: most lengths here are one byte.
            byte = data[at]
            size, at = (byte >> 1, at + 1) if byte < 128 and not byte & 1 else _size(data, at)
            raw = data[at : at + size]
            at += size
            name = _names.get(raw)
            if name is None:
                name = _name(raw)
            byte = data[at]
            if byte < 128 and not byte & 1:
                begin, at = at + 1, at + 1 + (byte >> 1)
                headers.append((name, data[begin:at]))
            else:
                content, at = _nullable(data, at)
                headers.append((name, content))
        if at != end:
            raise ValueError(f"a record that ends at byte {at} says that it ends at {end}")
        timestamp_ms = base_timestamp_ms + delta_ms if append_timestamp_ms is None else append_timestamp_ms
        records.append(Record(topic, partition, base_offset + delta, value, key, tuple(headers), timestamp_ms))
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes after the last of {count} records")
    return records


def _nullable(data: bytes, at: int) -> tuple[bytes | None, int]:
    """What stands there, and where it ends."""
    size, at = _varint(data, at)
    if size < 0:
        if size == -1:
            return None, at
        raise ValueError(f"a length of {size}")
    return data[at : at + size], at + size


def _size(data: bytes, at: int) -> tuple[int, int]:
    size, at = _varint(data, at)
    if size < 0:
        raise ValueError(f"a length of {size}")
    return size, at


def _name(raw: bytes) -> str:
    name = raw.decode()
    if len(_names) < _NAMES_KEPT:
        _names[raw] = name
    return name


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends; of ten bytes at most."""
    byte = data[at]
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at + 1
    number, shift = byte & 127, 7
    while shift < 64:
        at += 1
        byte = data[at]
        number |= (byte & 127) << shift
        if byte < 128:
            return (number >> 1) ^ -(number & 1), at + 1
        shift += 7
    raise ValueError("a number of more than 64 bits")
