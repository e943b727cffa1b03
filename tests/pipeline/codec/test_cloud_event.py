from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec.cloud_event import CloudEvent, rfc3339, unix_seconds
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.record import Record
from pipeline.settings import InputSettings
from pipeline.user_error import UserError

PROPERTY = settings(max_examples=100)
FIELDS: dict[str, Any] = {"id": "7", "source": "digits", "type": "sample", "content_type": "text/plain", "data": b"x"}


def test_headers_are_those_of_the_kafka_binding_in_binary_mode() -> None:
    event = CloudEvent(**FIELDS, subject="person 3", time_seconds=1_700_000_000.25, label="sieben", task="2")

    assert event.headers() == [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"7"),
        ("ce_source", b"digits"),
        ("ce_type", b"sample"),
        ("ce_time", b"2023-11-14T22:13:20.250000Z"),
        ("ce_subject", b"person 3"),
        ("ce_label", b"sieben"),
        ("ce_task", b"2"),
        ("content-type", b"text/plain"),
    ]


def test_what_is_not_there_has_no_header() -> None:
    assert [name for name, _ in CloudEvent(**FIELDS).headers()] == [
        "ce_specversion",
        "ce_id",
        "ce_source",
        "ce_type",
        "content-type",
    ]


@PROPERTY
@given(
    attributes=st.fixed_dictionaries(
        {name: st.text(min_size=1, max_size=60) for name in ("id", "source", "label", "subject", "task")}
    ),
    time_microseconds=st.integers(-(10**15), 4 * 10**15),
)
def test_an_event_comes_back_from_its_record(attributes: dict[str, str], time_microseconds: int) -> None:
    event = CloudEvent(**(FIELDS | attributes), time_seconds=time_microseconds / 10**6)

    decoded = RecordDecoder(InputSettings()).decode(Record("t", 0, 0, event.data, headers=event.headers()))

    assert decoded.problem is None
    sample = decoded.sample
    assert sample is not None
    assert (sample.id, sample.source, sample.label) == (event.id, event.source, event.label)
    assert (sample.subject, sample.task) == (event.subject, event.task)
    assert sample.event_time_seconds == pytest.approx(event.time_seconds, abs=1e-6)


@pytest.mark.parametrize("name", ["id", "source", "type", "content_type", "subject", "label"])
def test_an_empty_attribute_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        CloudEvent(**(FIELDS | {name: ""}))


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 1e12, -1e12])
def test_a_time_outside_the_calendar_is_refused(seconds: float) -> None:
    with pytest.raises(UserError, match="years 1 to 9999"):
        CloudEvent(**FIELDS, time_seconds=seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01t00:00:01z", 1.0),
        ("1970-01-01T01:00:00.5+01:00", 0.5),
        ("2023-11-14T22:13:20.250000123Z", 1_700_000_000.25),
        ("1970-01-01T00:00:00", None),  # without a zone it is no moment
        ("yesterday", None),
        ("", None),
        ("2023-02-30T00:00:00Z", None),
    ],
)
def test_rfc_3339(text: str, seconds: float | None) -> None:
    assert unix_seconds(text) == seconds


def test_rfc_3339_has_the_microseconds() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(-0.000001) == "1969-12-31T23:59:59.999999Z"
