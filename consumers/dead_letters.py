"""Records that cannot be learnt from: sent on unchanged, with the reason and where they stood. Never lost."""

from __future__ import annotations

from collections.abc import Sequence

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
_WHERE = (TOPIC, PARTITION, OFFSET)


def dead_letter(stream: str, record: Record, problem: BadRecord) -> OutboxMessage:
    """Key, value and headers as they were, and beside them why and where from."""
    facts = {
        REASON: str(problem.reason),
        DETAIL: problem.detail,
        TOPIC: record.topic,
        PARTITION: str(record.partition),
        OFFSET: str(record.offset),
        TIMESTAMP: str(record.timestamp_ms),
    }
    return OutboxMessage(
        topic=dead_letters_topic(stream),
        key=record.key,
        value=record.value,
        headers=(*record.headers, *((name, value.encode(errors="replace")) for name, value in facts.items())),
    )


def origin(headers: Sequence[tuple[str, bytes | None]]) -> tuple[str, int, int] | None:
    """(topic, partition, offset) where a dead letter stood; None where somebody else wrote it."""
    # The last of a name counts: a record that came back from dead letters and is bad again carries the older ones too.
    facts = {name: value.decode() for name, value in headers if value is not None and name in _WHERE}
    try:
        return facts[TOPIC], int(facts[PARTITION]), int(facts[OFFSET])
    except (KeyError, ValueError):
        return None
