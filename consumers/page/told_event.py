"""An event as the page shows it: what happened in one line, when, and after how many records.

Anybody may write to `<stream>.events`, so nothing is taken for what it should be: a value of another type, or a text
without end, makes a poorer line and no error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consumers.events import event_data, event_id, event_kind
from consumers.topics import MAIN_BRANCH
from model_store.registry import AVERAGE_ACCURACY_TAG, AVERAGE_FORGETTING_TAG, TRIGGER_TAG
from pipeline.codec.cloud_event import unix_seconds
from pipeline.record import Record
from pipeline.state import Json

# Every lull of a trickling stream is one: they would push everything else out of what is kept.
_NOT_SHOWN = frozenset({"idle_flush"})
_MOST_CHARACTERS = 400
_MOST_ID_CHARACTERS = 1_000  # an id holds a label, of 256 bytes at most
_NAMED_CLASSES = 6  # of those that a restructuring is for


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldVersion:
    """What `version_registered` says of a version."""

    version: int
    trigger: str
    average_accuracy: float | None
    average_forgetting: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldEvent:
    """One line of the page."""

    id: str
    kind: str
    time_seconds: float  # Unix time
    at_records: int | None  # consumed by then, where the event says so
    text: str
    version: ToldVersion | None = None  # that was registered
    promoted: tuple[int | None, int] | None = None  # champion before, and after


def told_event(record: Record) -> ToldEvent | None:
    """Of a record of `<stream>.events`; None where it is none of the branch main that the page shows."""
    data = event_data(record, branch=MAIN_BRANCH)
    kind = event_kind(record.headers)
    if data is None or kind is None or kind in _NOT_SHOWN:
        return None
    seconds = unix_seconds((record.header("ce_time") or b"").decode(errors="replace"))
    identity = event_id(record.headers) or f"{record.partition}@{record.offset}"
    return event_of(identity, kind, data, time_seconds=record.timestamp_ms / 1000 if seconds is None else seconds)


def event_of(identity: str, kind: str, data: Mapping[str, Json], *, time_seconds: float) -> ToldEvent:
    """Of what is told, or would be."""
    records = data.get("records_consumed")
    text = _TEXTS[kind](data) if kind in _TEXTS else kind.replace("_", " ")
    return ToldEvent(
        id=identity[:_MOST_ID_CHARACTERS],
        kind=kind[:_MOST_CHARACTERS],
        time_seconds=time_seconds if math.isfinite(time_seconds) else 0.0,
        at_records=records if type(records) is int and 0 <= records < 2**53 else None,
        text=_cut(text),
        version=_registered_version(data) if kind == "version_registered" else None,
        promoted=_promoted(data) if kind == "promoted" else None,
    )


# -- what is said ------------------------------------------------------------------------------------------------------


def _new_class(data: Mapping[str, Json]) -> str:
    return f"class {_word(data.get('class'))} is new"


def _drift(data: Mapping[str, Json]) -> str:
    return f"drift, says {_word(data.get('detector'))}"


def _requested(data: Mapping[str, Json]) -> str:
    kind = _word(data.get("kind")) if "kind" in data else "restructuring"
    return f"asks for a job, {kind}, for {_word(data.get('reason')).replace('_', ' ')}{_classes(data)}"


def _adopted(data: Mapping[str, Json]) -> str:
    text = f"adopted {_word(data.get('job'))}{_classes(data)}"
    before, after = _share(data.get("average_accuracy_before")), _share(data.get("average_accuracy_after"))
    if before is not None and after is not None:
        text += f"; accuracy {before:.1%} before, {after:.1%} after"
    records = data.get("records_to_relearn")
    return f"{text}; {records:,} records to learn once more" if type(records) is int else text


def _job_refused(data: Mapping[str, Json]) -> str:
    return f"refused {_word(data.get('job'))}: {_word(data.get('why'))}"


def _registered(data: Mapping[str, Json]) -> str:
    told = _registered_version(data)
    return "a version is registered" if told is None else f"version {told.version} is registered ({told.trigger})"


def _promotion(data: Mapping[str, Json]) -> str:
    text = f"version {_word(data.get('to'))} is promoted by {_word(data.get('by'))}"
    if data.get("from") is not None:
        text += f", in the place of {_word(data['from'])}"
    how = [name for name in ("forced", "rollback") if data.get(name) is True]
    return f"{text} ({', '.join(how)})" if how else text


def _promotion_refused(data: Mapping[str, Json]) -> str:
    return f"version {_word(data.get('to'))} is not promoted: {'; '.join(_words(data.get('reasons')))}"


def _accepted_gap(data: Mapping[str, Json]) -> str:
    return f"the log has lost records, accepted: {'; '.join(_words(data.get('why')))}"


def _passed_over(data: Mapping[str, Json]) -> str:
    return f"a snapshot was passed over: {_word(data.get('why'))}"


def _erased(data: Mapping[str, Json]) -> str:
    rows, samples = _word(data.get("reservoir_rows")), _word(data.get("held_out_samples"))
    return f"a subject was erased: {rows} rows of the reservoir, {samples} held-out samples"


def _replayed(data: Mapping[str, Json]) -> str:
    sent = data.get("sent")
    counts = map(_number, sent.values()) if isinstance(sent, Mapping) else ()
    return f"dead letters were sent back: {sum(count for count in counts if count is not None):,}"


_TEXTS = {
    "new_class": _new_class,
    "drift": _drift,
    "restructuring_requested": _requested,
    "adopted": _adopted,
    "offer_refused": _job_refused,
    "restructuring_refused": _job_refused,
    "version_registered": _registered,
    "promoted": _promotion,
    "promotion_refused": _promotion_refused,
    "accepted_gap": _accepted_gap,
    "snapshot_passed_over": _passed_over,
    "subject_erased": _erased,
    "dead_letters_replayed": _replayed,
}


# -- of what types it is -----------------------------------------------------------------------------------------------


def _registered_version(data: Mapping[str, Json]) -> ToldVersion | None:
    version, tags = _number(data.get("version")), data.get("tags")
    if version is None:
        return None
    named = tags if isinstance(tags, Mapping) else {}
    return ToldVersion(
        version=version,
        trigger=_word(named.get(TRIGGER_TAG)),
        average_accuracy=_share(named.get(AVERAGE_ACCURACY_TAG)),
        average_forgetting=_share(named.get(AVERAGE_FORGETTING_TAG)),
    )


def _promoted(data: Mapping[str, Json]) -> tuple[int | None, int] | None:
    after = _number(data.get("to"))
    return None if after is None else (_number(data.get("from")), after)


def _number(value: Json) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def _share(value: Json) -> float | None:
    """Tags are texts."""
    try:
        share = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return share if 0 <= share <= 1 else None


def _classes(data: Mapping[str, Json]) -> str:
    classes = _words(data.get("new_classes"))
    if not classes:
        return ""
    more = len(classes) - _NAMED_CLASSES
    return f" ({', '.join(classes[:_NAMED_CLASSES])}{f' and {more} more' if more > 0 else ''})"


def _words(value: Json) -> list[str]:
    return [_word(entry) for entry in value] if isinstance(value, Sequence) and not isinstance(value, str) else []


def _word(value: Json) -> str:
    return "?" if value is None or isinstance(value, list | dict) else _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
