"""What happened to the model, as CloudEvents in JSON on `<stream>.events`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from consumers.topics import events as events_topic
from model_store.snapshot import OutboxMessage
from pipeline.codec.cloud_event import CloudEvent
from pipeline.record import Record
from pipeline.state import Json

_TYPE_PREFIX = "io.palimpsest."


def event_message(
    *, stream: str, branch: str, kind: str, key: str, data: Mapping[str, Json], time_seconds: float
) -> OutboxMessage:
    """One event. Its id is made of what it is about (`key`), not of when it was told: told twice, readers drop one.

    `kind` is new_class, drift, idle_flush, accepted_gap, version_registered, snapshot_passed_over, subject_erased,
    promoted, promotion_refused, dead_letters_replayed, restructuring_requested, restructuring_refused, adopted or
    offer_refused.
    """
    event = CloudEvent(
        id=f"{stream}/{branch}/{kind}/{key}",
        source=f"palimpsest/{stream}/{branch}",
        type=f"{_TYPE_PREFIX}{kind}",
        content_type="application/json",
        data=json.dumps({"stream": stream, "branch": branch, **data}, ensure_ascii=False).encode(),
        time_seconds=time_seconds,
    )
    return OutboxMessage(
        topic=events_topic(stream), key=kind.encode(), value=event.data, headers=tuple(event.headers())
    )


def event_id(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """What readers tell repeats by."""
    return _text(headers, "ce_id")


def event_kind(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """What happened; None for what is no event of ours."""
    told = _text(headers, "ce_type") or ""
    return told.removeprefix(_TYPE_PREFIX) if told.startswith(_TYPE_PREFIX) else None


def event_data(record: Record, *, branch: str, kind: str | None = None) -> dict[str, Json] | None:
    """What a branch has told about itself; None for an event of another kind or branch, and for what is none at all.
    Without `kind`: an event of any."""
    told = event_kind(record.headers)
    if told is None or record.value is None or (kind is not None and told != kind):
        return None
    try:
        data = json.loads(record.value)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or made to be read by nobody
        return None
    return cast("dict[str, Json]", data) if isinstance(data, dict) and data.get("branch") == branch else None


def _text(headers: Sequence[tuple[str, bytes | None]], name: str) -> str | None:
    values = [value for key, value in headers if key == name and value is not None]
    try:
        return values[-1].decode() if values else None
    except UnicodeDecodeError:  # somebody else's: we write UTF-8
        return None
