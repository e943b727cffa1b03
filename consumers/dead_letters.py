"""Records that cannot be learnt from: sent on unchanged, with the reason and where they stood. Never lost."""

from __future__ import annotations

from consumers import topics
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
        topic=topics.dead_letters(stream),
        key=record.key,
        value=record.value,
        headers=(*record.headers, *((name, value.encode(errors="replace")) for name, value in facts.items())),
    )
