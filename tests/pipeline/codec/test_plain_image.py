"""Images of the usual kind: what Pillow's own parsing gives, of whole files and of broken ones."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.codec.bare_image import bare_jpeg, bare_png
from pipeline.codec.image import JpegCodec, PngCodec
from pipeline.codec.payload_codec import PayloadCodec
from pipeline.codec.plain_image import PlainImage, plain_jpeg, plain_png
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings


class PillowsJpegCodec(JpegCodec):
    def plain(self, bare: bytes) -> PlainImage | None:
        return None


class PillowsPngCodec(PngCodec):
    def plain(self, bare: bytes) -> PlainImage | None:
        return None


def outcome(codec: PayloadCodec, value: bytes, **options: Any) -> tuple[Any, ...] | DeadLetterReason:
    """The array, or why there is none."""
    try:
        x = codec.decode(value, {}, InputSettings(**options)).x
    except BadRecord as problem:
        return problem.reason
    return x.shape, x.dtype, x.flags.c_contiguous, x.flags.writeable, x.tobytes()


def blotches(side: int, channels: int) -> Image.Image:
    generator = np.random.default_rng(side)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side + 3), Image.Resampling.BICUBIC)).astype(np.float64)
    noisy = np.clip(smooth + generator.normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)
    image = Image.fromarray(noisy)
    return image.convert("L") if channels == 1 else image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": 20, "subsampling": 2},
        {"quality": 95, "subsampling": 0},
        {"subsampling": 1, "optimize": True},
        {"progressive": True},
        {"restart_marker_blocks": 2},
        {"comment": b"metadata", "dpi": (300, 300)},
    ],
)
@pytest.mark.parametrize("side", [1, 7, 32, 101])
@pytest.mark.parametrize("shape", [None, (1, 28, 28), (3, 16, 20), (3, 60, 60)])
def test_jpegs_have_the_pixels_that_pillow_gives(
    channels: int, options: dict[str, Any], side: int, shape: tuple[int, ...] | None
) -> None:
    value = saved(blotches(side, channels), "JPEG", **options)
    plain = plain_jpeg(bare_jpeg(value))
    assert plain is not None
    assert (plain.mode, plain.size) == ("L" if channels == 1 else "RGB", (side, side + 3))
    assert outcome(JpegCodec(), value, shape=shape) == outcome(PillowsJpegCodec(), value, shape=shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [None, (1, 28, 28), (3, 16, 20)])
def test_pngs_have_the_pixels_that_pillow_gives(channels: int, shape: tuple[int, ...] | None) -> None:
    for side in (1, 28, 90):
        value = saved(blotches(side, channels), "PNG")
        plain = plain_png(bare_png(value))
        assert plain is not None
        assert (plain.mode, plain.size) == ("L" if channels == 1 else "RGB", (side, side + 3))
        assert outcome(PngCodec(), value, shape=shape) == outcome(PillowsPngCodec(), value, shape=shape)


@pytest.mark.parametrize(
    "image",
    [
        blotches(9, 3).convert("P"),
        blotches(9, 3).convert("RGBA"),
        blotches(9, 1).convert("1"),
        blotches(9, 1).convert("LA"),
        Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999),
    ],
    ids=lambda image: image.mode,
)
def test_unusual_pngs_are_left_to_pillow(image: Image.Image) -> None:
    value = saved(image, "PNG")
    assert plain_png(bare_png(value)) is None
    assert outcome(PngCodec(), value) == outcome(PillowsPngCodec(), value)


def test_a_transparent_colour_is_left_to_pillow() -> None:
    value = saved(blotches(9, 3), "PNG", transparency=(1, 2, 3))
    assert plain_png(bare_png(value)) is None


def test_jpegs_in_other_colours_or_of_many_bytes_are_left_to_pillow() -> None:
    assert plain_jpeg(bare_jpeg(saved(blotches(9, 3).convert("CMYK"), "JPEG"))) is None
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    value = saved(noise, "JPEG", quality=100)
    assert len(value) > 65536
    assert plain_jpeg(bare_jpeg(value)) is None
    assert outcome(JpegCodec(), value) == outcome(PillowsJpegCodec(), value)


def test_more_pixels_than_are_allowed_are_refused_before_anything_is_unpacked() -> None:
    for codec, kind in ((JpegCodec(), "JPEG"), (PngCodec(), "PNG")):
        value = saved(blotches(20, 3), kind)  # 20 x 23
        assert outcome(codec, value, max_image_pixels=459) is DeadLetterReason.IMAGE_TOO_LARGE
        assert isinstance(outcome(codec, value, max_image_pixels=460), tuple)


BREAKABLE = [
    (JpegCodec(), PillowsJpegCodec(), saved(blotches(17, 3), "JPEG")),
    (JpegCodec(), PillowsJpegCodec(), saved(blotches(17, 1), "JPEG", progressive=True)),
    (PngCodec(), PillowsPngCodec(), saved(blotches(11, 3), "PNG")),
    (PngCodec(), PillowsPngCodec(), saved(blotches(11, 1), "PNG")),
]


@settings(max_examples=600)
@given(
    which=st.sampled_from(BREAKABLE),
    cut=st.none() | st.integers(0, 5_000),
    changes=st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), max_size=3),
    inserted=st.none() | st.tuples(st.integers(0, 5_000), st.binary(min_size=1, max_size=5)),
)
def test_what_was_broken_comes_to_the_same(
    which: tuple[PayloadCodec, PayloadCodec, bytes],
    cut: int | None,
    changes: list[tuple[int, int]],
    inserted: tuple[int, bytes] | None,
) -> None:
    ours, pillows, whole = which
    value = bytearray(whole)
    for place, byte in changes:
        value[place % len(value)] = byte
    if inserted is not None:
        value[inserted[0] % len(value) : inserted[0] % len(value)] = inserted[1]
    if cut is not None:
        del value[cut % len(value) :]
    options = {"max_image_pixels": 1_000_000}
    assert outcome(ours, bytes(value), **options) == outcome(pillows, bytes(value), **options)


@settings(max_examples=600)
@given(place=st.integers(0, 700), byte=st.integers(0, 255))
def test_a_broken_head_comes_to_the_same(place: int, byte: int) -> None:
    """Where the quantization and Huffman tables are: most of what is parsed."""
    for ours, pillows, whole in BREAKABLE[:2]:
        value = bytearray(whole)
        value[place % len(value)] = byte
        options = {"max_image_pixels": 1_000_000}
        assert outcome(ours, bytes(value), **options) == outcome(pillows, bytes(value), **options)
