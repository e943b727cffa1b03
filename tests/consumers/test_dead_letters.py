"""Every kind of bad input, through the whole process: unchanged to dead letters with its reason; learning goes on."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from consumers import dead_letters, topics
from consumers.dead_letters import dead_letter
from model_store.snapshot import OutboxMessage
from pipeline import keyed_randomness
from pipeline.codec.image import encode_png
from pipeline.codec.npy import encode_npy
from pipeline.record import Record
from pipeline.sample import BadRecord, DeadLetterReason
from tests.consumers.digit_records import Headers, Written, digit, digit_stream
from tests.consumers.learner_world import STREAM, Witness, World, learner_settings

R = DeadLetterReason


def altered(
    *, value: bytes | None = b"", without: str = "", keep_value: bool = False, **headers: bytes | None
) -> Written:
    """A good record with another value, without a header, or with other ones."""
    good = digit(3)
    changed: dict[str, bytes | None] = dict(good.headers) | {
        name.replace("content_type", "content-type"): content for name, content in headers.items()
    }
    changed["ce_id"] = repr((value, without, headers)).encode()
    changed.pop(without, None)
    pairs: Headers = tuple(changed.items())
    return Written(value=good.value if keep_value else value, headers=pairs, key=b"\x00\xffkey")


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that would unpack to width x height pixels: a bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def npy(x: np.ndarray) -> bytes:
    return encode_npy(x)


def npy_of_objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


JPEG_HEAD = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
NPY, JSON, TEXT = b"application/x-npy", b"application/json", b"text/plain; charset=utf-8"
GOOD_PNG = digit(3).value or b""
ODD_ID = Written(value=GOOD_PNG, headers=(*digit(3).headers, ("ce_id", b"\xff")))
BAD_INPUT: dict[str, tuple[Written, DeadLetterReason]] = {
    "no label": (altered(keep_value=True, without="ce_label"), R.NO_LABEL),
    "null label": (altered(keep_value=True, ce_label=None), R.NO_LABEL),
    "empty label": (altered(keep_value=True, ce_label=b""), R.EMPTY_LABEL),
    "label that is not UTF-8": (altered(keep_value=True, ce_label=b"caf\xe9"), R.LABEL_NOT_UTF8),
    "label of 257 bytes": (altered(keep_value=True, ce_label=("é" * 128 + "x").encode()), R.LABEL_TOO_LONG),
    "unknown content type": (altered(keep_value=True, content_type=b"application/x-tar"), R.UNKNOWN_CONTENT_TYPE),
    "no content type": (altered(keep_value=True, without="content-type"), R.UNKNOWN_CONTENT_TYPE),
    "tombstone": (altered(value=None), R.NO_PAYLOAD),
    "empty payload": (altered(value=b""), R.NO_PAYLOAD),
    "truncated png": (altered(value=GOOD_PNG[:-20]), R.BROKEN_IMAGE),
    "truncated jpeg": (altered(value=JPEG_HEAD, content_type=b"image/jpeg"), R.BROKEN_IMAGE),
    "not an image at all": (altered(value=b"hello"), R.BROKEN_IMAGE),
    "oversized payload": (altered(value=b"\x89PNG" + b"\0" * 5000), R.PAYLOAD_TOO_LARGE),
    "image bomb": (altered(value=png_of_size(60_000, 60_000)), R.IMAGE_TOO_LARGE),
    "image of another size": (altered(value=encode_png(np.zeros((1, 9, 9), np.uint8))), R.WRONG_SHAPE),
    "image with colours": (altered(value=encode_png(np.zeros((3, 8, 8), np.uint8))), R.WRONG_SHAPE),
    "tensor where images are": (altered(value=npy(np.zeros((1, 8, 8), np.float32)), content_type=NPY), R.WRONG_TYPE),
    "tensor of objects": (altered(value=npy_of_objects(), content_type=NPY), R.WRONG_TYPE),
    "truncated tensor": (altered(value=npy(np.zeros(9, np.float32))[:-3], content_type=NPY), R.BROKEN_ARRAY),
    "NaN": (altered(value=npy(np.array([1.0, np.nan])), content_type=NPY), R.NOT_FINITE),
    "infinite": (altered(value=npy(np.array([1.0, -np.inf])), content_type=NPY), R.NOT_FINITE),
    "text that is not UTF-8": (altered(value=b"caf\xe9", content_type=TEXT), R.TEXT_NOT_UTF8),
    "broken JSON": (altered(value=b'{"payload": [1.0', content_type=JSON), R.BROKEN_JSON),
    "JSON with an infinite number": (altered(value=b'{"payload": [1e999]}', content_type=JSON), R.NOT_FINITE),
    "label past max_classes": (altered(keep_value=True, ce_label=b"one too many"), R.TOO_MANY_CLASSES),
    "id that is not UTF-8": (ODD_ID, R.BAD_HEADER),
}


def test_every_kind_of_bad_input_goes_to_dead_letters_and_learning_goes_on(tmp_path: Path) -> None:
    settings = learner_settings(network={"max_classes": 6}, input={"max_payload_bytes": 4096})
    good = digit_stream(40, clean=True)
    expected: list[tuple[int, Written, DeadLetterReason]] = []
    world, undisturbed = World(tmp_path / "bad", settings), World(tmp_path / "good", settings)
    undisturbed.write(good)
    undisturbed.learn()
    # All six classes are known when the bad records come, one after each good one.
    bad = list(BAD_INPUT.values())
    world.write(good[:90])
    for number, record in enumerate(good[90:]):
        world.write([record])
        if number < len(bad):
            spoilt, reason = bad[number]
            written = world.log.append(spoilt.value, key=spoilt.key, headers=spoilt.headers, timestamp_ms=1234)
            expected.append((written.offset, spoilt, reason))
    assert len(expected) == len(bad) <= 30
    witness = Witness()
    world.learn(observer=witness)

    told = world.dead_letters()
    assert world.dead_offsets() == [offset for offset, _, _ in expected]
    for message, (offset, spoilt, reason) in zip(told, expected, strict=True):
        assert (message.key, message.value) == (spoilt.key, spoilt.value)
        assert message.headers[: len(spoilt.headers)] == spoilt.headers, "unchanged, in order"
        added = dict(message.headers[len(spoilt.headers) :])
        assert added[dead_letters.REASON] == str(reason).encode(), added[dead_letters.DETAIL]
        assert added[dead_letters.DETAIL], "a line for a person"
        assert b"\n" not in (added[dead_letters.DETAIL] or b"")
        assert added[dead_letters.TOPIC] == world.log.topic.encode()
        assert (added[dead_letters.PARTITION], added[dead_letters.OFFSET]) == (b"0", str(offset).encode())
        assert added[dead_letters.TIMESTAMP] == b"1234"
    counted = Counter(problem.reason for step in witness.steps for _, problem in step.batch.dead)
    assert counted == Counter(reason for _, _, reason in expected)
    # The good ones were all learnt, to the last.
    for name in ("records_trained", "records_held_out"):
        assert world.newest().state[name] == undisturbed.newest().state[name]
    assert world.newest().facts["classes"] == undisturbed.newest().facts["classes"]


@pytest.mark.parametrize("reason", DeadLetterReason)
def test_every_reason_has_a_case(reason: DeadLetterReason) -> None:
    """No image is without bounds; what no update can bear has a test of its own below."""
    assert reason in {expected for _, expected in BAD_INPUT.values()} | {R.NOT_LEARNABLE}


def test_a_finite_record_that_no_update_can_bear_goes_to_dead_letters_and_learning_goes_on(tmp_path: Path) -> None:
    random = keyed_randomness.generator(0, "tests")

    def vector(number: int, size: float) -> Written:
        headers = {
            "ce_id": f"v{number}",
            "ce_source": "tests",
            "ce_label": str(number % 2),
            "content-type": NPY.decode(),
        }
        return Written(
            value=npy((random.normal(number % 2, 0.3, 8) * size).astype(np.float32)),
            headers=tuple((name, value.encode()) for name, value in headers.items()),
        )

    world = World(tmp_path)
    records = [vector(number, 1e37 if number == 42 else 1.0) for number in range(100)]
    world.write(records)
    world.learn()
    assert world.dead_offsets() == [42]
    (told,) = world.dead_letters()
    assert (told.value, told.headers[: len(records[42].headers)]) == (records[42].value, records[42].headers)
    assert dict(told.headers)[dead_letters.REASON] == b"not_learnable"
    state = world.newest().state
    assert int(str(state["records_trained"])) + int(str(state["records_held_out"])) == 99


def test_producer_repeats_are_dropped_and_counted(tmp_path: Path) -> None:
    """At-least-once delivery: the whole stream twice, the second time in another order, is learnt once."""
    records = digit_stream(40, clean=True)
    world = World(tmp_path)
    world.write([*records, *reversed(records)])
    witness = Witness()
    world.learn(observer=witness)
    assert sum(len(step.batch.duplicates) for step in witness.steps) == len(records)
    state = world.newest().state
    assert state["records_consumed"] == 2 * len(records)
    assert int(str(state["records_trained"])) + int(str(state["records_held_out"])) == len(records)
    assert world.dead_letters() == []


def test_a_dead_letter_that_was_put_right_is_learnt_when_it_comes_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    broken = Written(value=GOOD_PNG[:30], headers=digit(3).headers, key=None)
    world.write([digit(0), broken, digit(3)])
    world.learn()
    assert world.dead_offsets() == [1]
    state = world.newest().state
    assert int(str(state["records_trained"])) + int(str(state["records_held_out"])) == 2


def test_headers_keep_order_repeats_and_nulls_and_the_newest_origin_counts() -> None:
    """A record that came back from dead letters and is bad again carries both origins."""
    record = Record("t.samples", 2, 7, None, None, (("a", b"1"), ("a", None), (dead_letters.OFFSET, b"3")), 5)
    message = dead_letter("t", record, BadRecord(R.NO_PAYLOAD, "no value \udcff"))
    assert message.topic == "t.dead-letters"
    assert message.headers[:3] == (("a", b"1"), ("a", None), (dead_letters.OFFSET, b"3"))
    assert dead_letters.origin(message.headers) == ("t.samples", 2, 7)
    assert dict(message.headers)[dead_letters.DETAIL] == b"no value ?"


LIMIT = 8 * 1024 * 1024


@pytest.mark.parametrize(
    ("key", "value", "header", "left_out"),
    [
        # Key, value and the header "h": up to the limit all is as it was.
        (100, LIMIT - 100 - 1 - 20, 20, {}),
        (100, LIMIT - 100 - 20, 20, {dead_letters.VALUE_BYTES: LIMIT - 100 - 20}),
        (0, 300 * 1024 * 1024, 0, {dead_letters.VALUE_BYTES: 300 * 1024 * 1024}),
        (LIMIT, 5, 20, {dead_letters.VALUE_BYTES: 5, dead_letters.KEY_BYTES: LIMIT, dead_letters.HEADERS_BYTES: 21}),
    ],
)
def test_of_a_huge_record_it_is_told_where_it_stood_and_what_is_missing(
    key: int, value: int, header: int, left_out: dict[str, int]
) -> None:
    record = Record("t.samples", 2, 7, bytes(value), bytes(key), (("h", bytes(header)),), 5)
    message = dead_letter("t", record, BadRecord(R.PAYLOAD_TOO_LARGE, "too large"))
    added = dict(message.headers)
    assert {name: int(added.get(name) or 0) for name in left_out} == left_out
    names = {dead_letters.VALUE_BYTES, dead_letters.KEY_BYTES, dead_letters.HEADERS_BYTES}
    assert names & set(added) == set(left_out)
    assert message.value == (None if dead_letters.VALUE_BYTES in left_out else record.value)
    whole_head = dead_letters.KEY_BYTES not in left_out
    assert (message.key, "h" in added) == (record.key if whole_head else None, whole_head)
    assert dead_letters.origin(message.headers) == ("t.samples", 2, 7)
    assert added[dead_letters.REASON] == str(R.PAYLOAD_TOO_LARGE).encode()


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((dead_letters.TOPIC, b"t"),),
        ((dead_letters.TOPIC, b"t"), (dead_letters.PARTITION, b"x"), (dead_letters.OFFSET, b"1")),
    ],
)
def test_what_somebody_else_wrote_has_no_origin(headers: Headers) -> None:
    assert dead_letters.origin(headers) is None


@pytest.mark.parametrize("name", [dead_letters.TOPIC, dead_letters.PARTITION, dead_letters.OFFSET])
def test_headers_of_ours_that_are_not_utf8_stop_nobody(tmp_path: Path, name: str) -> None:
    """A foreign record that carries them, and foreign messages in the topics that a fall-back reads back."""
    world = World(tmp_path)
    bad = Written(value=b"", headers=((name, b"\xff"),), key=None)
    world.write([*digit_stream(10, clean=True), bad, *digit_stream(10, clean=True, seed=3)])
    world.learn(snapshots={"every_records": 20})
    assert world.dead_offsets() == [30]
    ours = ((dead_letters.TOPIC, b"t"), (dead_letters.PARTITION, b"0"), (dead_letters.OFFSET, b"1"))
    forged = tuple((key, b"\xff" if key == name else value) for key, value in ours)
    flush = (("ce_type", b"io.palimpsest.idle_flush"), ("ce_id", b"\xff"))
    for value in (b"\xff", b'{"branch": "main"}', b'{"branch": "main", "offsets": [["t", "0", 1]]}'):
        world.commits.messages.append(OutboxMessage(topic="digits.events", key=None, value=value, headers=flush))
    world.commits.messages.append(OutboxMessage(topic=topics.dead_letters(STREAM), key=None, value=b"", headers=forged))
    shutil.rmtree(world.newest_entry().path)
    world.learn()
    assert world.dead_offsets() == [30]
    assert world.newest().offsets[world.partition] == 61
