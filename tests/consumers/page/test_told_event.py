"""Each kind of event has a line; what anybody else may have written makes a poorer one, and no error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from consumers.events import event_message
from consumers.page.told_event import ToldVersion, told_event
from pipeline.record import Record
from pipeline.state import Json

LINES: dict[str, tuple[dict[str, Json], str]] = {
    "new_class": ({"class": "<b>"}, "class <b> is new"),
    "drift": ({"detector": "page_hinkley"}, "drift, says page_hinkley"),
    "accepted_gap": ({"why": ["a", "b"]}, "the log has lost records, accepted: a; b"),
    "version_registered": (
        {"version": 3, "tags": {"palimpsest.trigger": "final", "palimpsest.average_accuracy": "0.5"}},
        "version 3 is registered (final)",
    ),
    "snapshot_passed_over": ({"why": "no manifest"}, "a snapshot was passed over: no manifest"),
    "subject_erased": (
        {"reservoir_rows": 2, "held_out_samples": 1},
        "a subject was erased: 2 rows of the reservoir, 1 held-out samples",
    ),
    "promoted": (
        {"by": "ada", "from": 1, "to": 3, "rollback": True, "forced": False},
        "version 3 is promoted by ada, in the place of 1 (rollback)",
    ),
    "promotion_refused": ({"to": 4, "reasons": ["forgetting rose"]}, "version 4 is not promoted: forgetting rose"),
    "dead_letters_replayed": ({"sent": {"digits.samples": 1200}}, "dead letters were sent back: 1,200"),
    "restructuring_requested": (
        {"kind": "expansion", "reason": "new_classes", "new_classes": [str(number) for number in range(8)]},
        "asks for a job, expansion, for new classes (0, 1, 2, 3, 4, 5 and 2 more)",
    ),
    "restructuring_refused": ({"job": "expansion-5", "why": "no records"}, "refused expansion-5: no records"),
    "offer_refused": ({"job": "expansion-5", "why": "worse"}, "refused expansion-5: worse"),
    "adopted": (
        {
            "job": "consolidation-2",
            "new_classes": ["3"],
            "average_accuracy_before": 0.9,
            "average_accuracy_after": 0.95,
            "records_to_relearn": 1635,
        },
        "adopted consolidation-2 (3); accuracy 90.0% before, 95.0% after; 1,635 records to learn once more",
    ),
}


def record(kind: str, data: Mapping[str, Json], *, branch: str = "main", **changes: Any) -> Record:
    message = event_message(stream="digits", branch=branch, kind=kind, key="k", data={}, time_seconds=1_700_000_000.5)
    value = json.dumps({"branch": branch, **data}).encode()  # as others may write it: escapes of half characters too
    return Record(message.topic, 0, 7, value, message.key, message.headers, 1_600_000_000_000)._replace(**changes)


@pytest.mark.parametrize("kind", LINES)
def test_every_kind_has_its_line(kind: str) -> None:
    data, line = LINES[kind]
    told = told_event(record(kind, {"records_consumed": 120, **data}))
    assert told is not None
    assert (told.kind, told.text, told.at_records, told.time_seconds) == (kind, line, 120, 1_700_000_000.5)
    assert told.id == f"digits/main/{kind}/k"


def test_the_kinds_are_those_that_are_told() -> None:
    """A new kind needs a line here, or a reason why it is not shown."""
    told = " ".join((event_message.__doc__ or "").split())
    named = set(told.partition("`kind` is ")[2].rstrip(".").replace(" or ", ", ").split(", "))
    assert named == set(LINES) | {"idle_flush"}


def test_lulls_and_other_branches_are_not_shown() -> None:
    assert told_event(record("idle_flush", {})) is None
    assert told_event(record("drift", {}, branch="what-if")) is None
    assert told_event(record("drift", {})._replace(headers=())) is None
    assert told_event(record("drift", {})._replace(value=b"\xff")) is None


def test_a_version_says_how_good_it_is() -> None:
    told = told_event(record("version_registered", LINES["version_registered"][0]))
    assert told is not None
    assert told.version == ToldVersion(version=3, trigger="final", average_accuracy=0.5, average_forgetting=None)
    told = told_event(record("promoted", {"from": None, "to": 2}))
    assert told is not None
    assert told.promoted == (None, 2)


@pytest.mark.parametrize("wrong", [None, [], {}, "x" * 5_000, -1, 1e400, 2**80, True, ["\ud800", {}, [1]]])
@pytest.mark.parametrize("kind", [*LINES, "something_of_a_later_release"])
def test_whatever_stands_there_it_is_a_short_line(kind: str, wrong: Json) -> None:
    names = {name for data, _ in LINES.values() for name in data} | {"records_consumed"}
    told = told_event(record(kind, dict.fromkeys(names, wrong)))
    assert told is not None
    assert 0 < len(told.text) <= 400
    assert told.at_records is None


def test_counts_without_end_are_none() -> None:
    """Each can be read, and their sum cannot be written any more."""
    told = told_event(record("dead_letters_replayed", {"sent": {"a": 10**4_299 * 9, "b": 10**4_299 * 9, "c": 7}}))
    assert told is not None
    assert told.text == "dead letters were sent back: 7"


def test_without_a_time_of_its_own_it_has_the_log_s() -> None:
    headers = tuple((name, value) for name, value in record("drift", {}).headers if name != "ce_time")
    told = told_event(record("drift", {}, headers=headers))
    assert told is not None
    assert told.time_seconds == 1_600_000_000
    headers = tuple((name, b"yesterday" if name == "ce_time" else value) for name, value in record("drift", {}).headers)
    told = told_event(record("drift", {}, headers=headers))
    assert told is not None
    assert told.time_seconds == 1_600_000_000
