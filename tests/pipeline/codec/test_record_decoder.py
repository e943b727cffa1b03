from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.codec.npy import encode_npy
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.record import Record
from pipeline.sample import BadRecord, DeadLetterReason, Sample
from pipeline.settings import InputSettings
from pipeline.user_error import UserError

NPY = encode_npy(np.array([1, 2, 3], np.float32))
GOOD: dict[str, Any] = {"ce_id": b"7", "ce_source": b"digits", "ce_label": b"cat", "content-type": b"application/x-npy"}


def record(value: bytes | None = NPY, headers: dict[str, Any] | None = None, **changes: Any) -> Record:
    """A good record but for `changes`, whose names have "_" where headers have "-" after the prefix; None: left out."""
    named = GOOD | {name.replace("content_type", "content-type"): raw for name, raw in changes.items()}
    kept = headers if headers is not None else {name: raw for name, raw in named.items() if raw is not None}
    return Record("stream.samples", 3, 42, value, headers=tuple(kept.items()))


def sample(of: Record, labelled: bool = True, **options: Any) -> Sample:
    decoded = RecordDecoder(InputSettings(**options), labelled=labelled).decode(of)
    assert decoded.problem is None
    assert decoded.record is of
    assert decoded.sample is not None
    return decoded.sample


def problem(of: Record, labelled: bool = True, **options: Any) -> BadRecord:
    decoded = RecordDecoder(InputSettings(**options), labelled=labelled).decode(of)
    assert decoded.sample is None
    assert decoded.record is of
    assert decoded.problem is not None
    assert "\n" not in decoded.problem.detail
    return decoded.problem


def test_a_good_record() -> None:
    read = sample(record(ce_subject=b"s", ce_task=b"1", ce_time=b"1970-01-01T00:00:02Z"))
    assert read.x.tolist() == [1, 2, 3]
    assert (read.kind, read.label, read.source, read.id) == ("vector", "cat", "digits", "7")
    assert (read.subject, read.task, read.event_time_seconds) == ("s", "1", 2.0)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record(None), DeadLetterReason.NO_PAYLOAD),
        (record(b""), DeadLetterReason.NO_PAYLOAD),
        (record(ce_label=None), DeadLetterReason.NO_LABEL),
        (record(ce_label=b""), DeadLetterReason.EMPTY_LABEL),
        (record(ce_label=b"\xff"), DeadLetterReason.LABEL_NOT_UTF8),
        (record(ce_label=b"x" * 257), DeadLetterReason.LABEL_TOO_LONG),
        (record(ce_label="ä".encode() * 129), DeadLetterReason.LABEL_TOO_LONG),
        (record(content_type=None), DeadLetterReason.UNKNOWN_CONTENT_TYPE),
        (record(content_type=b""), DeadLetterReason.UNKNOWN_CONTENT_TYPE),
        (record(content_type=b"image/webp"), DeadLetterReason.UNKNOWN_CONTENT_TYPE),
        (record(content_type=b"no type\nat all"), DeadLetterReason.UNKNOWN_CONTENT_TYPE),
        (record(content_type=b"\xff/\xfe"), DeadLetterReason.BAD_HEADER),
        (record(ce_id=b"\xff"), DeadLetterReason.BAD_HEADER),
        (record(ce_source=b"\xff"), DeadLetterReason.BAD_HEADER),
        (record(ce_subject=b"\xff"), DeadLetterReason.BAD_HEADER),
        (record(NPY[:-1]), DeadLetterReason.BROKEN_ARRAY),
        (record(content_type=b"image/png"), DeadLetterReason.BROKEN_IMAGE),
        (record(content_type=b"image/jpeg"), DeadLetterReason.BROKEN_IMAGE),
        (record(content_type=b"text/plain"), DeadLetterReason.TEXT_NOT_UTF8),
        (record(content_type=b"application/json"), DeadLetterReason.BROKEN_JSON),
    ],
)
def test_reasons(bad: Record, reason: DeadLetterReason) -> None:
    assert problem(bad).reason == reason


def test_a_label_of_just_the_length_allowed() -> None:
    assert sample(record(ce_label="ä".encode() * 128)).label == "ä" * 128
    assert problem(record(ce_label=b"abc"), max_label_bytes=2).reason == DeadLetterReason.LABEL_TOO_LONG


def test_a_payload_of_just_the_length_allowed() -> None:
    sample(record(), max_payload_bytes=len(NPY))
    assert problem(record(), max_payload_bytes=len(NPY) - 1).reason == DeadLetterReason.PAYLOAD_TOO_LARGE


def test_header_names_in_any_case_and_the_last_one_counts() -> None:
    headers: Any = (
        ("CE_Label", b"first"),
        ("ce_LABEL", b"last"),
        ("ce_label", None),
        ("Content-Type", b"APPLICATION/X-NPY; version=1"),
    )
    read = sample(Record("t", 0, 0, NPY, headers=headers))  # other clients write nulls
    assert read.label == "last"


def test_what_a_producer_left_out() -> None:
    read = sample(record(ce_id=None, ce_source=None))
    assert (read.id, read.source) == ("stream.samples/3/42", "stream.samples")
    assert (read.subject, read.task, read.event_time_seconds) == (None, None, None)
    empty = sample(record(ce_id=b"", ce_source=b"", ce_subject=b""))
    assert (empty.id, empty.source, empty.subject) == ("stream.samples/3/42", "stream.samples", None)


@pytest.mark.parametrize("time", [b"yesterday", b"\xff", b"", b"2024-01-01T00:00:00"])
def test_a_time_that_is_none_costs_no_sample(time: bytes) -> None:
    assert sample(record(ce_time=time, ce_task=b"\xff")).event_time_seconds is None


def test_unlabelled_records_need_no_label_and_show_none() -> None:
    assert sample(record(ce_label=None), labelled=False).label is None
    assert sample(record(ce_label=b"cat"), labelled=False).label is None
    assert sample(record(ce_label=b"\xff"), labelled=False).label is None
    strange = record(b'{"payload":[1],"label":{}}', content_type=b"application/json", ce_label=None)
    assert sample(strange, labelled=False).label is None


JSON_LABELS = [
    ('"cat"', "cat"),
    ("7", "7"),
    ("null", DeadLetterReason.NO_LABEL),
    ('""', DeadLetterReason.EMPTY_LABEL),
    (r'"\ud800"', DeadLetterReason.LABEL_NOT_UTF8),
    ('"' + "x" * 257 + '"', DeadLetterReason.LABEL_TOO_LONG),
    ("1" * 300, DeadLetterReason.LABEL_TOO_LONG),
    ("true", DeadLetterReason.WRONG_TYPE),
    ("1.5", DeadLetterReason.WRONG_TYPE),
    ("[1]", DeadLetterReason.WRONG_TYPE),
]


@pytest.mark.parametrize(("label", "expected"), JSON_LABELS, ids=[label[:12] for label, _ in JSON_LABELS])
def test_labels_inside_json(label: str, expected: str | DeadLetterReason) -> None:
    value = b'{"payload":[1],"label":%s}' % label.encode()
    without_header = record(value, content_type=b"application/json", ce_label=None)
    if isinstance(expected, DeadLetterReason):
        assert problem(without_header).reason == expected
    else:
        assert sample(without_header).label == expected
    # the header goes before it, whatever stands there
    assert sample(record(value, content_type=b"application/json")).label == "cat"


def test_a_problem_holds_on_to_nothing() -> None:
    found = problem(record(NPY[:-1], content_type=b"image/png"))
    assert found.__traceback__ is None
    assert found.__cause__ is None
    assert found.__context__ is None


def test_a_payload_alone() -> None:
    decoder = RecordDecoder(InputSettings())
    x, kind = decoder.decode_payload(NPY, "application/x-npy")
    assert (x.tolist(), kind) == ([1, 2, 3], "vector")
    with pytest.raises(BadRecord, match="no_payload"):
        decoder.decode_payload(b"", "application/x-npy")
    with pytest.raises(BadRecord, match="unknown_content_type"):
        decoder.decode_payload(NPY, "")


@pytest.mark.parametrize("shape", [(), (0,), (3, -1, 4)])
def test_shapes_that_no_record_could_meet(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"input\.shape"):
        RecordDecoder(InputSettings(shape=shape))


def test_a_checkpoint_that_is_not_there_is_told_at_the_start() -> None:
    with pytest.raises(UserError, match=r"input\.checkpoint"):
        RecordDecoder(InputSettings(checkpoint="no/such/folder"))


JSON: dict[str, Any] = {"ce_label": None, "content_type": b"application/json"}


@pytest.mark.parametrize(
    ("of", "found"),
    [
        (record(), ("7", "cat")),
        (record(None), ("7", "cat")),
        (record(b"no image", content_type=b"image/jpeg"), ("7", "cat")),
        (record(ce_id=None), ("stream.samples/3/42", "cat")),
        (record(b'{"label": "dog", "payload": [[1], 2]}', **JSON), ("7", "dog")),
        (record(b'{"label": 5}', **JSON), ("7", "5")),
        (record(b'{"label": "dog"}', content_type=b"application/json"), ("7", "cat")),
        (record(b'{"label": true}', **JSON), None),
        (record(b"{}", **JSON), None),
        (record(b"{", **JSON), None),
        (record(None, **JSON), None),
        (record(ce_label=None), None),
        (record(ce_label=None, content_type=b"nonsense"), None),
        (record(ce_label=b""), None),
        (record(ce_label=b"x" * 257), None),
        (record(ce_id=b"\xff"), None),
    ],
)
def test_a_label_is_read_without_the_payload(of: Record, found: tuple[str, str] | None) -> None:
    assert RecordDecoder(InputSettings()).decode_label(of) == found


def test_a_document_beyond_the_limit_is_not_searched_for_a_label() -> None:
    decoder = RecordDecoder(InputSettings(max_payload_bytes=10))
    assert decoder.decode_label(record(b'{"label": "dog"}', **JSON)) is None
