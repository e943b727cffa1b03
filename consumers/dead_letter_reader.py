"""Dead letters read back: why each is one, where it stood, and the record as it was at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consumers import dead_letters
from consumers.dead_letters import ADDED_HEADERS
from consumers.kafka_nullable import with_nulls
from pipeline.codec.record_headers import last_headers
from pipeline.record import Partition, Record

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One record of the topic of dead letters, taken apart. All text in it is whatever somebody once wrote."""

    record: Record  # as it lies among the dead letters
    reason: str
    detail: str
    origin: Partition
    origin_offset: int
    timestamp_ms: int | None  # of the record where it stood
    value_bytes: int  # also of a value that was left out
    is_whole: bool  # False: value (and maybe key and headers) were left out; they lie where it stood, if anywhere

    @property
    def stood_at(self) -> str:
        """topic/partition/offset: the id that the decoder gives a record without one."""
        return f"{self.origin.topic}/{self.origin.number}/{self.origin_offset}"

    @property
    def headers(self) -> tuple[tuple[str, bytes | None], ...]:
        """Those that the record had at first: none of ours, and null again what was null."""
        return original_headers(self.record.headers)

    def text(self, name: str) -> str | None:
        """A header of the record itself, as the decoder would find it: in any case, the last one."""
        found = [value for key, value in self.headers if key.lower() == name and value is not None]
        return found[-1].decode(errors="backslashreplace") if found else None

    def is_of(self, record: Record) -> bool:
        """Whether what lies where this one stood is what it was made of, as far as it can be told.

        No sum of it was kept: the same size, the same time and, unless it was left out, the same key.
        """
        return (
            len(record.value or b"") == self.value_bytes
            and record.timestamp_ms == self.timestamp_ms
            and (self.record.header(dead_letters.KEY_BYTES) is not None or record.key == self.record.key)
        )

    def whole_record(self, found: Record | None = None) -> Record:
        """The record as it was; `found` is what lies where it stood, for one that is not whole."""
        if found is None:
            assert self.is_whole, f"{self.stood_at} must be found first"
            found = self.record._replace(headers=self.headers)
        return found._replace(
            topic=self.origin.topic,
            partition=self.origin.number,
            offset=self.origin_offset,
            timestamp_ms=self.timestamp_ms or 0,
        )


def parse_dead_letter(record: Record) -> DeadLetter | None:
    """None where somebody else wrote it: without our headers, or with what we would not write into them."""
    where = dead_letters.origin(record.headers)
    reason = _text(record, dead_letters.REASON)
    if where is None or not reason or where[1] < 0 or where[2] < 0:
        return None
    left_out = _number(record, dead_letters.VALUE_BYTES)
    return DeadLetter(
        record=record,
        reason=reason,
        detail=_text(record, dead_letters.DETAIL) or "",
        origin=Partition(where[0], where[1]),
        origin_offset=where[2],
        timestamp_ms=_number(record, dead_letters.TIMESTAMP),
        value_bytes=len(record.value or b"") if left_out is None else left_out,
        is_whole=left_out is None,
    )


def original_headers(headers: Headers) -> tuple[tuple[str, bytes | None], ...]:
    """A dead letter's headers without those that were added to it."""
    return tuple((name, value) for name, value in with_nulls(headers) if name not in ADDED_HEADERS)


def identified(record: Record) -> tuple[tuple[str, bytes | None], ...]:
    """The record's headers with the id and the source that the decoder gives it where it stands.

    It gives a record without them topic/partition/offset and the topic. Sent on to another offset without them it
    would be another record, and each repeat of that a new one.
    """
    last = last_headers(record.headers)
    added: list[tuple[str, bytes | None]] = []
    if not last.get("ce_id"):
        added.append(("ce_id", f"{record.topic}/{record.partition}/{record.offset}".encode()))
    if not last.get("ce_source"):
        added.append(("ce_source", record.topic.encode()))
    return (*record.headers, *added)


def _text(record: Record, name: str) -> str | None:
    value = record.header(name)
    return None if value is None else value.decode(errors="backslashreplace")


def _number(record: Record, name: str) -> int | None:
    try:
        return int(record.header(name) or b"")
    except ValueError:  # anybody can write such headers, in any bytes
        return None
