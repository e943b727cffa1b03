"""What every codec must hold, found by itself; and mutations of good payloads, none of which may do harm."""

from __future__ import annotations

import json
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.codec import payload_codecs
from pipeline.codec.image import encode_jpeg, encode_png
from pipeline.codec.npy import encode_npy
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.record import Record
from pipeline.sample import DeadLetterReason, Decoded, InputSpec
from pipeline.settings import InputSettings

FUZZ = settings(max_examples=400)


def _image(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    x_HWC = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(x_HWC).convert(mode).save(buffer, format=kind, **options)
    return buffer.getvalue()


GOOD_PAYLOADS: dict[str, list[bytes]] = {
    "image/png": [
        encode_png(np.arange(64, dtype=np.uint8).reshape(1, 8, 8)),
        _image("PNG"),
        _image("PNG", "P", transparency=bytes(range(200))),
        _image("PNG", "LA"),
        _image("PNG", "1"),
    ],
    "image/jpeg": [
        encode_jpeg(np.arange(64, dtype=np.uint8).reshape(1, 8, 8)),
        _image("JPEG", progressive=True),
        _image("JPEG", "CMYK"),
    ],
    "application/x-npy": [
        encode_npy(np.arange(12, dtype=np.float32).reshape(3, 4)),
        encode_npy(np.array([1e30, -1e30, 5e-324])),
        encode_npy(np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3))),
        encode_npy(np.array([True, False])),
    ],
    "text/plain": ["Grüße aus 東京 😀".encode(), b"plain"],
    "application/json": [
        json.dumps({"payload": [[1, 2.5], [3, 4e10]], "label": "a"}).encode(),
        json.dumps({"payload": "a text", "label": 3}).encode(),
    ],
}
GOOD_PAYLOADS["image/jpg"] = GOOD_PAYLOADS["image/jpeg"]


def decode(value: bytes, content_type: bytes, shape: tuple[int, ...] | None = None) -> Decoded:
    headers = (("ce_label", b"cat"), ("content-type", content_type))
    decoded = RecordDecoder(InputSettings(shape=shape)).decode(Record("t", 0, 0, value, headers=headers))
    if decoded.sample is None:
        assert decoded.problem is not None
        assert isinstance(decoded.problem.reason, DeadLetterReason)
        assert len(decoded.problem.detail) < 400
        assert "\n" not in decoded.problem.detail
    else:
        assert decoded.problem is None
        x = decoded.sample.x
        assert x.dtype == InputSpec(kind=decoded.sample.kind, shape=x.shape).dtype
        assert x.size > 0
        assert x.flags.c_contiguous
        assert x.flags.writeable
        assert np.isfinite(x).all()
    return decoded


@pytest.mark.parametrize("content_type", sorted(payload_codecs()))
def test_a_good_payload_decodes_the_same_twice(content_type: str) -> None:
    assert content_type in GOOD_PAYLOADS, f"a new codec: add good payloads of {content_type} here"
    for value in GOOD_PAYLOADS[content_type]:
        first, second = (decode(value, content_type.encode()).sample for _ in range(2))
        assert first is not None
        assert second is not None
        np.testing.assert_array_equal(first.x, second.x)
        assert not np.shares_memory(first.x, second.x)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A content type, and a good payload of it with bytes changed, cut, doubled or put in."""
    content_type = draw(st.sampled_from(sorted(GOOD_PAYLOADS)))
    value = bytearray(draw(st.sampled_from(GOOD_PAYLOADS[content_type])))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(value)))
        match draw(st.sampled_from(["change", "cut", "double", "insert", "truncate", "largest"])):
            case "change":
                value[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del value[at : at + draw(st.integers(1, 8))]
            case "double":
                value[at:at] = value[at : at + draw(st.integers(1, 64))]
            case "insert":
                value[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "truncate":
                del value[at:]
            case _:
                value[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"]))
    if content_type == "image/png" and draw(st.booleans()):
        value = with_checksums(value)
    return content_type.encode(), bytes(value)


def with_checksums(png: bytearray) -> bytearray:
    """Chunks with right checksums, as an attacker would send them: else Pillow stops at most mutations at once."""
    position = 8
    while position + 12 <= len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        png[end - 4 : end] = zlib.crc32(png[position + 4 : end - 4]).to_bytes(4, "big") if end <= len(png) else b""
        position = end
    return png


@FUZZ
@given(mutation=mutations(), shape=st.sampled_from([None, None, (3, 6, 5), (1, 24, 24), (3, 4)]))
def test_mutated_payloads_never_raise(mutation: tuple[bytes, bytes], shape: tuple[int, ...] | None) -> None:
    content_type, value = mutation
    decode(value, content_type, shape)


@FUZZ
@given(content_type=st.sampled_from(sorted(GOOD_PAYLOADS)), value=st.binary(max_size=60))
def test_bytes_of_any_kind_never_raise(content_type: str, value: bytes) -> None:
    decode(value, content_type.encode())


@FUZZ
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                ["ce_id", "ce_source", "ce_subject", "ce_time", "ce_label", "ce_task", "content-type", "x", ""]
            ),
            st.one_of(st.none(), st.binary(max_size=20), st.text(max_size=20).map(str.encode), st.just(b"text/plain")),
        ),
        max_size=8,
    ),
    value=st.one_of(st.none(), st.just(b"text")),
    labelled=st.booleans(),
)
def test_headers_of_any_kind_never_raise(headers: list[tuple[str, Any]], value: bytes | None, labelled: bool) -> None:
    decoded = RecordDecoder(InputSettings(), labelled=labelled).decode(Record("t", 0, 0, value, headers=headers))
    assert (decoded.sample is None) != (decoded.problem is None)
