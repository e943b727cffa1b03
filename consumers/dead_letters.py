"""Records that cannot be learnt from: sent on unchanged, with the reason and where they stood. Never lost.

One of more than 8 MiB is sent on without its value, which no topic need take: it still lies where it stood.
"""

from __future__ import annotations

from collections.abc import Sequence

from consumers.topics import DEAD_LETTER_RECORD_BYTES
from consumers.topics import dead_letters as dead_letters_topic
from model_store.snapshot import OutboxMessage
from pipeline.record import Record
from pipeline.sample import BadRecord

# Headers added to a dead letter; the record's own headers stand before them, in their order.
REASON = "palimpsest-reason"
DETAIL = "palimpsest-detail"
TOPIC = "palimpsest-topic"
PARTITION = "palimpsest-partition"
OFFSET = "palimpsest-offset"
TIMESTAMP = "palimpsest-timestamp-ms"
# Of a record that is too large, how large the parts are that were left out of its dead letter.
VALUE_BYTES = "palimpsest-value-bytes"
KEY_BYTES = "palimpsest-key-bytes"
HEADERS_BYTES = "palimpsest-headers-bytes"
# All of them: what a dead letter has that its record had not.
ADDED_HEADERS = frozenset((REASON, DETAIL, TOPIC, PARTITION, OFFSET, TIMESTAMP, VALUE_BYTES, KEY_BYTES, HEADERS_BYTES))
_WHERE = (TOPIC, PARTITION, OFFSET)


def dead_letter(stream: str, record: Record, problem: BadRecord) -> OutboxMessage:
    """Key, value and headers as they were, and beside them why and where from.

    A record of more than `topics.DEAD_LETTER_RECORD_BYTES` loses its value, and if that is not enough its key and
    headers too; headers say how many bytes are missing.
    """
    facts = {
        REASON: str(problem.reason),
        DETAIL: problem.detail,
        TOPIC: record.topic,
        PARTITION: str(record.partition),
        OFFSET: str(record.offset),
        TIMESTAMP: str(record.timestamp_ms),
    }
    key, value, headers = record.key, record.value, tuple(record.headers)
    key_bytes, value_bytes, headers_bytes = len(key or b""), len(value or b""), _size_bytes(headers)
    if key_bytes + value_bytes + headers_bytes > DEAD_LETTER_RECORD_BYTES:
        value = None
        facts[VALUE_BYTES] = str(value_bytes)
        if key_bytes + headers_bytes > DEAD_LETTER_RECORD_BYTES:
            key, headers = None, ()
            facts |= {KEY_BYTES: str(key_bytes), HEADERS_BYTES: str(headers_bytes)}
    return OutboxMessage(
        topic=dead_letters_topic(stream),
        key=key,
        value=value,
        headers=(*headers, *((name, value.encode(errors="replace")) for name, value in facts.items())),
    )


def _size_bytes(headers: Sequence[tuple[str, bytes | None]]) -> int:
    return sum(len(name.encode()) + len(value or b"") for name, value in headers)


def origin(headers: Sequence[tuple[str, bytes | None]]) -> tuple[str, int, int] | None:
    """(topic, partition, offset) where a dead letter stood; None where somebody else wrote it."""
    # The last of a name counts: a record that came back from dead letters and is bad again carries the older ones too.
    facts = {name: value for name, value in headers if value is not None and name in _WHERE}
    try:  # anybody can write such headers, in any bytes
        return facts[TOPIC].decode(), int(facts[PARTITION].decode()), int(facts[OFFSET].decode())
    except (KeyError, ValueError):
        return None
