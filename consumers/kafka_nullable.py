"""Messages whose key, value and header values may each be null, which Kafka allows and kafka-python 3.0.12 refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kafka.serializer import Serializer

from consumers import kafka_python_mending

# The header that lists which of a message's headers were null (their positions, comma-separated), where a client other
# than the one that is mended sends them empty. A replay makes them null again.
NULL_HEADERS = "palimpsest-null-headers"


class _Null(bytes):
    """Stands for a null header on its way through `KafkaProducer.send`, which wants bytes and counts their length."""


_NULL_HEADER = _Null()
_NULL_VALUE = object()
_done: list[bool] = []


class NullableSerializer(Serializer):  # type: ignore[misc]
    """The `value_serializer` of a producer whose messages may have neither key nor value."""

    def serialize(self, topic: str, headers: Any, data: Any) -> bytes | None:
        return None if data is _NULL_VALUE else data


def sendable_value(value: bytes | None) -> object:
    """The value for `send` of a producer with a `NullableSerializer`."""
    return _NULL_VALUE if value is None else value


def sendable_headers(headers: Sequence[tuple[str, bytes | None]]) -> list[tuple[str, bytes]]:
    """The headers for `send`. Null ones are sent null; by a client we do not know empty, with `NULL_HEADERS` beside."""
    null = [str(position) for position, (_, value) in enumerate(headers) if value is None]
    if not null:
        return [(name, value) for name, value in headers if value is not None]
    if kafka_python_mending.mends_this_version():
        _write_null_headers()
        return [(name, _NULL_HEADER if value is None else value) for name, value in headers]
    return [*((name, value or b"") for name, value in headers), (NULL_HEADERS, ",".join(null).encode())]


def with_nulls(headers: Sequence[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes | None], ...]:
    """The inverse of `sendable_headers`: null where `NULL_HEADERS` says so, and without it.

    Anybody can write such a header: what it says of headers that are not there or not empty is ignored.
    """
    named = [value for name, value in headers if name == NULL_HEADERS and value is not None]
    positions = {text for value in named[-1:] for text in value.split(b",")}
    return tuple(
        (name, None if value == b"" and str(position).encode() in positions else value)
        for position, (name, value) in enumerate(headers)
        if name != NULL_HEADERS
    )


def _write_null_headers() -> None:
    """Fault: the client's record builder writes null headers, but its `send` lets only bytes come so far.

    Where our stand-in arrives, the builder gets a null. Both take one byte, so that no size reckoned before is wrong.
    """
    if _done:
        return
    _done.append(True)
    from kafka.record.default_records import DefaultRecordBatchBuilder

    append = DefaultRecordBatchBuilder.append

    def appending(self: Any, offset: int, timestamp: int | None, key: Any, value: Any, headers: Any) -> Any:
        if any(content is _NULL_HEADER for _, content in headers):
            headers = [(name, None if content is _NULL_HEADER else content) for name, content in headers]
        return append(self, offset, timestamp, key, value, headers)

    DefaultRecordBatchBuilder.append = appending
