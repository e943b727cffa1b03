"""A record to be written: a CloudEvent in Kafka's binary mode (attributes in headers, the raw payload as value).

CloudEvents 1.0.2 and its Kafka protocol binding; `label` and `task` are our extension attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.user_error import UserError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudEvent:
    """One sample on its way to a topic. `source` + `id` name it: a repeat of both is the same event.

    `time_seconds` is a Unix time, kept to the microsecond. Raises `UserError` where an attribute that CloudEvents
    requires is empty, or the time lies outside the years 1 to 9999.
    """

    id: str
    source: str
    type: str
    content_type: str
    data: bytes
    subject: str | None = None  # what the record is about: hold-outs are chosen by it
    time_seconds: float | None = None
    label: str | None = None  # any string but the empty one; None: unlabelled
    task: str | None = None  # for offline evaluation only

    def __post_init__(self) -> None:
        for name in ("id", "source", "type", "content_type"):
            if not getattr(self, name):
                raise UserError(f"a CloudEvent needs a non-empty {name}; got {getattr(self, name)!r}")
        for name in ("subject", "label"):
            if getattr(self, name) == "":
                raise UserError(f"a CloudEvent's {name} must not be empty; leave it out (None) instead")
        if self.time_seconds is not None:
            rfc3339(self.time_seconds)

    def headers(self) -> list[tuple[str, bytes]]:
        """The record's headers; attributes that are None are left out."""
        attributes = (
            ("ce_specversion", "1.0"),
            ("ce_id", self.id),
            ("ce_source", self.source),
            ("ce_type", self.type),
            ("ce_time", None if self.time_seconds is None else rfc3339(self.time_seconds)),
            ("ce_subject", self.subject),
            ("ce_label", self.label),
            ("ce_task", self.task),
            ("content-type", self.content_type),
        )
        return [(name, text.encode()) for name, text in attributes if text is not None]


def rfc3339(unix_seconds: float) -> str:
    """`1700000000.25` -> `2023-11-14T22:13:20.250000Z`."""
    try:
        moment = EPOCH + timedelta(seconds=unix_seconds)
    except (OverflowError, ValueError) as error:  # ValueError: NaN
        raise UserError(f"a time is a Unix time within the years 1 to 9999; got {unix_seconds!r} seconds") from error
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def unix_seconds(text: str) -> float | None:
    """The inverse of `rfc3339`, for every RFC 3339 time; None for anything else, a time without a zone included."""
    try:
        moment = datetime.fromisoformat(text.upper())  # RFC 3339 allows "t" and "z"
    except ValueError:
        return None
    return None if moment.tzinfo is None else (moment - EPOCH).total_seconds()
