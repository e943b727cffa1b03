from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec.json_payload import JsonCodec
from pipeline.codec.payload_codec import Payload
from pipeline.codec.text import TextCodec
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings

PROPERTY = settings(max_examples=100)


def decode(document: Any, **options: Any) -> Payload:
    value = document if isinstance(document, bytes) else json.dumps(document).encode()
    return JsonCodec().decode(value, {}, InputSettings(**options))


def reason(document: Any, **options: Any) -> DeadLetterReason:
    with pytest.raises(BadRecord) as caught:
        decode(document, **options)
    return caught.value.reason


@PROPERTY
@given(text=st.text(min_size=1, max_size=60), label=st.text(max_size=10))
def test_a_string_is_a_text(text: str, label: str) -> None:
    payload = decode({"payload": text, "label": label})
    assert (payload.kind, payload.label) == ("text", label)
    assert payload.x.tolist() == TextCodec().decode(text.encode(), {}, InputSettings()).x.tolist()


def test_a_nest_of_numbers_is_a_vector() -> None:
    payload = decode({"payload": [[1, 2.5, True], [-3, 0, 1e-3]]})
    assert payload.kind == "vector"
    assert payload.x.dtype == np.float32
    np.testing.assert_array_equal(payload.x, np.array([[1, 2.5, 1], [-3, 0, 1e-3]], np.float32))


def test_dotted_paths() -> None:
    document = {"data": {"x": [1, 2]}, "meta": {"class": {"name": "cat"}}}
    payload = decode(document, json_payload_field="data.x", json_label_field="meta.class.name", shape=(2,))
    assert (payload.x.tolist(), payload.label) == ([1, 2], "cat")


def test_a_byte_order_mark_is_ignored() -> None:
    assert decode(b'\xef\xbb\xbf{"payload":[1]}').x.tolist() == [1]


@pytest.mark.parametrize("document", [{}, [], 1, "text", {"payload": None}, {"payload": ""}, {"payload.x": 1}])
def test_no_payload(document: Any) -> None:
    assert reason(document) == DeadLetterReason.NO_PAYLOAD


@pytest.mark.parametrize("payload", [{}, 1, 1.5, True, ["1.5"], [None], [{}], [1, "2"], [[1], [None]]])
def test_wrong_types(payload: Any) -> None:
    assert reason({"payload": payload}) == DeadLetterReason.WRONG_TYPE


@pytest.mark.parametrize("payload", [[], [[]], [[1, 2], [3]], [1, [2]], [[1], 2], [[[[[[[[[1]]]]]]]]]])
def test_wrong_shapes(payload: Any) -> None:
    assert reason({"payload": payload}) == DeadLetterReason.WRONG_SHAPE


def test_another_shape_than_the_settings_one() -> None:
    assert reason({"payload": [1, 2, 3]}, shape=(2,)) == DeadLetterReason.WRONG_SHAPE


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1e39", "1" + "0" * 400])
def test_not_finite(number: str) -> None:
    assert reason(b'{"payload":[0,%s]}' % number.encode()) == DeadLetterReason.NOT_FINITE


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        b"payload",
        b"\xff\xfe",
        '{"payload":"a"}'.encode("utf-16"),
        b'{"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
        b'{"payload":[' + b"9" * 5000 + b"]}",
        b'{"payload":"\x00"}',
        b'{"payload":[1]} {}',
    ],
    ids=lambda value: repr(value[:20]),
)
def test_broken_json(value: bytes) -> None:
    assert reason(value) == DeadLetterReason.BROKEN_JSON


def test_lone_surrogates_are_not_text() -> None:
    assert reason(rb'{"payload":"a\ud800"}') == DeadLetterReason.TEXT_NOT_UTF8


def test_a_long_string_among_many_numbers_is_not_unpacked() -> None:
    # as a numpy string array this would take 100,000 * 1,000,000 * 4 bytes
    payload = [0] * 100_000 + ["x" * 1_000_000]
    assert reason({"payload": payload}) == DeadLetterReason.WRONG_TYPE
