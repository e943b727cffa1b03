"""What a predictor answers, written and read back; and what else may lie on the topic."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.answers import MAX_LABEL_BYTES, Answer, answer_data, answer_message, parse_answer
from model_store.snapshot import OutboxMessage
from pipeline.classifier import Prediction
from pipeline.codec.record_headers import last_headers
from pipeline.record import Record
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings

NOW = 1_700_000_000.25  # seconds
CAT = Prediction(label="cat", probability=0.7, probabilities={"dog": 0.2, "cat": 0.7, "köln": 0.1})
UNREADABLE = BadRecord(DeadLetterReason.BROKEN_IMAGE, "not an image: köln")


def request(*headers: tuple[str, bytes | None]) -> Record:
    return Record("pets.requests", 3, 41, b"a payload", b"a key", headers, 1_000)


def written(asked: Record, said: Prediction | BadRecord = CAT, top_k: int = 2) -> OutboxMessage:
    data = answer_data(said, model="pets", version=7, role="champion", top_k=top_k)
    return answer_message(asked, data, topic="pets.predictions", stream="pets", now=NOW)


def read(message: OutboxMessage) -> Answer | None:
    return parse_answer(Record(message.topic, 0, 0, message.value, message.key, message.headers, 1_000))


def content(message: OutboxMessage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(message.value or b"")
    return found


def test_an_answer_is_read_as_it_was_written() -> None:
    message = written(request(("ce_source", b"shop"), ("ce_id", b"x-1")))
    assert (message.topic, message.key) == ("pets.predictions", b"a key")
    assert content(message) == {
        "label": "cat",
        "probability": 0.7,
        "top": [["cat", 0.7], ["dog", 0.2]],
        "model": "pets",
        "version": 7,
        "role": "champion",
        "request": {"source": "shop", "topic": "pets.requests", "partition": 3, "offset": 41},
    }
    assert dict(message.headers) == {
        "ce_specversion": b"1.0",
        "ce_id": b"x-1",
        "ce_source": b"palimpsest/pets/champion",
        "ce_type": b"io.palimpsest.prediction",
        "ce_time": b"2023-11-14T22:13:20.250000Z",
        "content-type": b"application/json",
    }
    assert read(message) == Answer(
        request_id="x-1", role="champion", version=7, label="cat", probability=0.7, time_seconds=NOW
    )


def test_what_could_not_be_read_is_told_why() -> None:
    message = written(request(("ce_id", b"x-1")), UNREADABLE)
    told = content(message)
    assert told["error"] == {"reason": "broken_image", "detail": "not an image: köln"}
    assert not {"label", "probability", "top"} & told.keys()
    assert (told["version"], told["request"]["offset"]) == (7, 41)
    found = read(message)
    assert found is not None
    assert (found.request_id, found.label, found.probability) == ("x-1", None, None)


@pytest.mark.parametrize("name", ["ce_id", "CE_ID"])
@pytest.mark.parametrize("given_id", [b"x-1", "köln".encode(), b" ", b"\xff\xfe\x00"])
def test_the_id_is_the_request_s_very_bytes(name: str, given_id: bytes) -> None:
    message = written(request((name, b"an older one"), (name, given_id), (name, None)))
    assert [value for header, value in message.headers if header.lower() == "ce_id"] == [given_id]
    found = read(message)
    if given_id.startswith(b"\xff"):
        assert found is None, "no label can name it, and another such id would be taken for it"
    else:
        assert found is not None
        assert found.request_id == given_id.decode()


@pytest.mark.parametrize("headers", [[], [("ce_id", b"")], [("ce_id", None)]])
def test_a_request_without_an_id_has_the_decoder_s(headers: list[tuple[str, bytes | None]]) -> None:
    message = written(request(*headers))
    assert dict(message.headers)["ce_id"] == b"pets.requests/3/41"
    assert content(message)["request"]["source"] == "pets.requests"


def test_a_source_that_is_not_utf8_can_still_be_answered() -> None:
    assert content(written(request(("ce_source", b"\xffshop"))))["request"]["source"] == "�shop"


@pytest.mark.parametrize(("top_k", "named"), [(0, []), (1, ["b"]), (3, ["b", "a", "c"]), (1000, ["b", "a", "c", "d"])])
def test_top_k_orders_by_probability_and_ties_by_name(top_k: int, named: list[str]) -> None:
    said = Prediction(label="b", probability=0.4, probabilities={"d": 0.1, "c": 0.25, "b": 0.4, "a": 0.25})
    told = content(written(request(), said, top_k))
    assert [name for name, _ in told["top"]] == named
    assert (told["label"], told["probability"]) == ("b", 0.4)


def test_a_class_s_name_that_no_utf8_can_hold_is_answered_nevertheless() -> None:
    """Names come from JSON, which can hold half of a surrogate pair."""
    odd = "\ud800"
    told = content(written(request(), Prediction(label=odd, probability=1.0, probabilities={odd: 1.0})))
    assert told["label"] == "?"


OURS = (("ce_type", b"io.palimpsest.prediction"), ("ce_id", b"x-1"))
GOOD = {"label": "cat", "probability": 0.5, "role": "champion", "version": 7}


def lying(value: bytes | None, *headers: tuple[str, bytes | None]) -> Record:
    return Record("pets.predictions", 0, 0, value, None, headers, 2_500)


def test_without_a_time_of_its_own_it_is_the_log_s() -> None:
    for odd in ((), (("ce_time", b"yesterday"),), (("ce_time", b"\xff"),)):
        found = parse_answer(lying(json.dumps(GOOD).encode(), *OURS, *odd))
        assert found is not None
        assert found.time_seconds == 2.5


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "previous"},
        {"role": ["champion"]},
        {"role": None},
        {"version": True},
        {"version": "7"},
        {"version": 7.0},
        {"label": None},
        {"label": ["cat"]},
        {"probability": "0.5"},
        {"probability": True},
        {"probability": math.nan},
        {"probability": math.inf},
        {"probability": -0.1},
        {"probability": 10**400},
    ],
)
def test_what_is_no_answer_of_ours_is_none(changes: dict[str, Any]) -> None:
    assert parse_answer(lying(json.dumps(GOOD).encode(), *OURS)) is not None
    assert parse_answer(lying(json.dumps({**GOOD, **changes}).encode(), *OURS)) is None


def test_what_lies_there_without_our_headers_or_without_json_is_none() -> None:
    good = json.dumps(GOOD).encode()
    assert parse_answer(lying(good)) is None
    assert parse_answer(lying(good, OURS[0])) is None
    assert parse_answer(lying(good, OURS[0], ("ce_id", b""))) is None
    assert parse_answer(lying(good, OURS[1], ("ce_type", b"sample"))) is None
    for value in (None, b"", b"{", b"[]", b"7", b"null", b"\xff\xff", b"[" * 100_000, b'{"version": 1' + b"0" * 5000):
        assert parse_answer(lying(value, *OURS)) is None


@pytest.mark.parametrize(
    ("label", "is_read"),
    [("x" * 256, True), ("x" * 257, False), ("ö" * 128, True), ("ö" * 129, False), ("\ud800" * 86, False)],
)
def test_a_label_that_is_longer_than_one_can_be_is_none_of_ours(label: str, is_read: bool) -> None:
    assert InputSettings().max_label_bytes == MAX_LABEL_BYTES
    assert (parse_answer(lying(json.dumps({**GOOD, "label": label}).encode(), *OURS)) is not None) == is_read


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["champion", 7, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "error"]), inner, max_size=5),
    max_leaves=10,
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["ce_type", "ce_id", "CE_ID", "ce_time", "content-type"]) | st.text(max_size=5),
        st.none()
        | st.binary(max_size=20)
        | st.sampled_from([b"io.palimpsest.prediction", b"0001-01-01T00:00:00+23:59"]),
    ),
    max_size=6,
)


@given(st.none() | st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()), HEADERS)
def test_whatever_anybody_writes_is_read_without_an_error(
    value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    for given_headers in (headers, [*headers, *OURS]):
        found = parse_answer(lying(value, *given_headers))
        assert found is None or found.probability is None or 0 <= found.probability <= 1


@given(st.none() | st.binary(max_size=50), HEADERS)
def test_whatever_is_asked_is_answered_readably(key: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
    asked = Record("pets.requests", 0, 0, b"x", key, tuple(headers))
    found = read(written(asked))
    if found is None:
        given_id = last_headers(asked.headers)["ce_id"]
        with pytest.raises(UnicodeDecodeError):
            given_id.decode()
        return
    assert (found.label, found.version, found.time_seconds) == ("cat", 7, NOW)


def test_what_nobody_could_send_back_is_not_sent_back() -> None:
    """An answer as large as that would be refused by the brokers, over and over."""
    huge = b"x" * 1_000_000
    asked = Record(
        "pets.requests",
        1,
        7,
        b"",
        huge,
        (("ce_id", huge), ("ce_source", huge), ("content-type", b"application/x-npy")),
    )
    data = answer_data(
        BadRecord(DeadLetterReason.NO_PAYLOAD, "empty"), model="pets", version=1, role="champion", top_k=3
    )
    message = answer_message(asked, data, topic="pets.predictions", stream="pets", now=1.0)
    assert message.size_bytes < 20_000
    assert message.key is None
    assert dict(message.headers)["ce_id"] == b"pets.requests/1/7"
