"""Events: CloudEvents in JSON, whose id says what they are about."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from consumers.events import event_data, event_id, event_message
from model_store.snapshot import OutboxMessage
from pipeline.record import Record
from pipeline.state import Json


def event(*, key: str = "Straße/7", time_seconds: float = 1_700_000_000.0) -> OutboxMessage:
    data: Mapping[str, Json] = {"class": "Straße/7", "records_consumed": 12}
    return event_message(stream="s", branch="main", kind="new_class", key=key, data=data, time_seconds=time_seconds)


def record(message: OutboxMessage) -> Record:
    return Record(message.topic, 0, 0, message.value, message.key, message.headers)


def test_an_event_is_a_cloud_event_in_json() -> None:
    message = event()
    assert (message.topic, message.key) == ("s.events", b"new_class")
    assert dict(message.headers) == {
        "ce_specversion": b"1.0",
        "ce_id": "s/main/new_class/Straße/7".encode(),
        "ce_source": b"palimpsest/s/main",
        "ce_type": b"io.palimpsest.new_class",
        "ce_time": b"2023-11-14T22:13:20.000000Z",
        "content-type": b"application/json",
    }
    assert json.loads(message.value or b"") == {
        "stream": "s",
        "branch": "main",
        "class": "Straße/7",
        "records_consumed": 12,
    }


def test_told_twice_it_is_the_same_event() -> None:
    again, other = event(time_seconds=1_800_000_000.0), event(key="8")
    assert event_id(event().headers) == event_id(again.headers) == "s/main/new_class/Straße/7"
    assert event_id(other.headers) != event_id(again.headers)


def test_a_branch_reads_its_own_events_back() -> None:
    read = record(event())
    assert event_data(read, kind="new_class", branch="main") == json.loads(read.value or b"")
    assert event_data(read, kind="drift", branch="main") is None
    assert event_data(read, kind="new_class", branch="what-if") is None


@pytest.mark.parametrize("value", [b"\xff", b"not JSON", b"[]", b"7", b"[" * 100_000])
def test_a_forged_event_is_none_of_ours(value: bytes) -> None:
    headers = (("ce_type", b"io.palimpsest.drift"), ("ce_id", b"\xff"))
    assert event_data(Record("s.events", 0, 0, value, None, headers), kind="drift", branch="main") is None
    assert event_id(headers) is None


@pytest.mark.parametrize("headers", [(), (("ce_type", None),), (("ce_type", b"com.example.other"), ("ce_id", b"1"))])
def test_what_others_wrote_is_no_event_of_ours(headers: tuple[tuple[str, bytes | None], ...]) -> None:
    assert event_data(Record("s.events", 0, 0, b"not JSON", None, headers), kind="drift", branch="main") is None
