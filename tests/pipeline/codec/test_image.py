from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipeline.codec.image import JpegCodec, PngCodec, encode_jpeg, encode_png
from pipeline.codec.payload_codec import PayloadCodec
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings
from pipeline.user_error import UserError

PROPERTY = settings(max_examples=100)
SMOOTH_3HW = np.stack([np.add.outer(np.arange(40), np.arange(56)) * k for k in (1, 2, 1)]).astype(np.uint8)


def decode(value: bytes, codec: PayloadCodec | None = None, **options: Any) -> npt.NDArray[np.generic]:
    payload = (codec or PngCodec()).decode(value, {}, InputSettings(**options))
    assert payload.kind == "image"
    assert payload.x.dtype == np.uint8
    assert payload.x.flags.c_contiguous
    assert payload.x.flags.writeable
    return payload.x


def reason(value: bytes, codec: PayloadCodec | None = None, **options: Any) -> DeadLetterReason:
    with pytest.raises(BadRecord) as caught:
        decode(value, codec, **options)
    return caught.value.reason


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_claims(width: int, height: int, data: bytes = b"\0" * 100) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@PROPERTY
@given(hnp.arrays(np.uint8, st.tuples(st.sampled_from([1, 3]), st.integers(1, 20), st.integers(1, 20))))
def test_png_round_trip(x_CHW: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(decode(encode_png(x_CHW)), x_CHW)
    np.testing.assert_array_equal(decode(encode_png(x_CHW), shape=x_CHW.shape), x_CHW)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_comes_back_nearly(channels: int) -> None:
    x_CHW = SMOOTH_3HW[:channels] // 4
    read = decode(encode_jpeg(x_CHW), JpegCodec())
    assert read.shape == x_CHW.shape
    assert np.abs(read.astype(int) - x_CHW).max() <= 6


@pytest.mark.parametrize("x", [np.zeros((2, 4, 4), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((1, 4, 4))])
def test_only_uint8_images_are_encoded(x: Any) -> None:
    for encode in (encode_png, encode_jpeg):
        with pytest.raises(UserError, match="an image is uint8"):
            encode(x)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    grey = np.array([[0, 128, 129, 257, 257 * 200, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(grey))), [[[0, 0, 1, 1, 200, 255]]])


def test_one_bit_is_black_and_white() -> None:
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode(saved(image)), [[[0, 255]]])


def test_what_is_transparent_is_laid_over_black() -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 128], [200, 100, 50, 0]]], np.uint8)
    # 128/255 of (200, 100, 50)
    np.testing.assert_array_equal(
        decode(saved(Image.fromarray(rgba)))[:, 0, :].T, [[200, 100, 50], [100, 50, 25], [0] * 3]
    )


def test_grey_with_alpha_becomes_rgb() -> None:
    grey_alpha = Image.merge("LA", [Image.new("L", (2, 2), 200), Image.new("L", (2, 2), 0)])
    np.testing.assert_array_equal(decode(saved(grey_alpha)), np.zeros((3, 2, 2)))


def test_palettes_transparent_and_not() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(saved(palette))[:, 0, :].T, [[10, 20, 30], [40, 50, 60]])
    transparent = saved(palette, transparency=bytes([255, 0]))
    np.testing.assert_array_equal(decode(transparent)[:, 0, :].T, [[10, 20, 30], [0, 0, 0]])


def test_cmyk_jpeg_becomes_rgb() -> None:
    red = Image.new("RGB", (8, 8), (250, 5, 5)).convert("CMYK")
    read = decode(saved(red, "JPEG", quality=95), JpegCodec())
    assert read.shape == (3, 8, 8)
    assert read[0].min() > 240
    assert read[1:].max() < 15


def test_progressive_jpeg_and_interlaced_sizes() -> None:
    image = Image.fromarray(SMOOTH_3HW.transpose(1, 2, 0))
    assert decode(saved(image, "JPEG", progressive=True), JpegCodec()).shape == (3, 40, 56)


def test_shape_converts_channels_and_resizes() -> None:
    grey = encode_png(np.full((1, 10, 20), 77, np.uint8))
    np.testing.assert_array_equal(decode(grey, shape=(3, 5, 8)), np.full((3, 5, 8), 77))
    colour = encode_png(np.stack([np.full((6, 6), v, np.uint8) for v in (255, 0, 0)]))
    # ITU-R 601-2 luma of red: 255 * 0.299 = 76
    np.testing.assert_array_equal(decode(colour, shape=(1, 3, 3)), np.full((1, 3, 3), 76))


def test_resizing_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), 32)[None, None, :].repeat(64, axis=1)  # (1, 64, 64)
    read = decode(encode_png(stripes), shape=(1, 8, 8))
    # every pixel an average over both colours; without antialiasing it would be one of them
    assert read[:, :, 1:-1].min() > 100
    assert read[:, :, 1:-1].max() < 155


def test_a_large_jpeg_unpacked_at_a_fraction_looks_the_same() -> None:
    x_CHW = np.stack([np.add.outer(np.arange(512), np.arange(512)) // k for k in (4, 5, 6)]).astype(np.uint8)
    value = encode_jpeg(x_CHW)
    small = Image.fromarray(decode(value, JpegCodec()).transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BILINEAR)
    read = decode(value, JpegCodec(), shape=(3, 32, 32))
    assert np.abs(read.astype(int) - np.asarray(small).transpose(2, 0, 1)).max() <= 4


@pytest.mark.parametrize("shape", [(784,), (28, 28), (2, 28, 28)])
def test_an_image_where_arrays_are_set(shape: tuple[int, ...]) -> None:
    assert reason(encode_png(np.zeros((1, 28, 28), np.uint8)), shape=shape) == DeadLetterReason.WRONG_SHAPE


@pytest.mark.parametrize(("codec", "encode"), [(PngCodec(), encode_png), (JpegCodec(), encode_jpeg)])
def test_every_truncation_is_a_broken_image(codec: PayloadCodec, encode: Any) -> None:
    value = encode(SMOOTH_3HW[:, ::4, ::4])
    assert {reason(value[:length], codec) for length in range(1, len(value))} == {DeadLetterReason.BROKEN_IMAGE}


@pytest.mark.parametrize("side", [10_000, 60_000, 2**31 - 1])
def test_a_small_file_that_claims_a_huge_image(side: int) -> None:
    # 10000^2 is where Pillow warns and 60000^2 where it raises, both by limits of its own
    assert reason(png_that_claims(side, side)) == DeadLetterReason.IMAGE_TOO_LARGE


def test_a_bomb_that_would_really_unpack() -> None:
    value = png_that_claims(3000, 3000, b"\0" * (3000 * 3001))
    assert len(value) < 10_000
    assert reason(value, max_image_pixels=3000 * 3000 - 1) == DeadLetterReason.IMAGE_TOO_LARGE
    assert decode(value, max_image_pixels=3000 * 3000).shape == (1, 3000, 3000)


def test_a_jpeg_that_claims_a_huge_image() -> None:
    value = bytearray(encode_jpeg(np.zeros((1, 8, 8), np.uint8)))
    frame = value.index(b"\xff\xc0")
    value[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    assert reason(bytes(value), JpegCodec()) == DeadLetterReason.IMAGE_TOO_LARGE
    # a second frame header must not smuggle another size past the check
    twice = encode_jpeg(np.zeros((1, 8, 8), np.uint8))
    length = 2 + int.from_bytes(value[frame + 2 : frame + 4], "big")
    smuggled = (
        twice[:frame] + twice[frame : frame + length] + bytes(value[frame : frame + length]) + twice[frame + length :]
    )
    assert reason(smuggled, JpegCodec()) == DeadLetterReason.IMAGE_TOO_LARGE


def test_only_the_declared_format_is_tried() -> None:
    image = Image.fromarray(SMOOTH_3HW.transpose(1, 2, 0))
    for kind in ("JPEG", "GIF", "BMP", "TIFF", "PPM"):
        assert reason(saved(image, kind)) == DeadLetterReason.BROKEN_IMAGE
    assert reason(saved(image, "PNG"), JpegCodec()) == DeadLetterReason.BROKEN_IMAGE


def test_a_wrong_checksum_is_a_broken_image() -> None:
    value = bytearray(encode_png(SMOOTH_3HW))
    value[value.index(b"IDAT") + 10] ^= 0xFF
    assert reason(bytes(value)) == DeadLetterReason.BROKEN_IMAGE


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("L", (8, 8), grey) for grey in (10, 200)]
    apng = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert b"acTL" in apng
    np.testing.assert_array_equal(decode(apng), np.full((1, 8, 8), 10))
    mpo = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(mpo, JpegCodec()), np.full((1, 8, 8), 10))


def test_bad_animation_chunks_do_not_warn() -> None:
    value = encode_png(SMOOTH_3HW)
    after_header = 8 + 25
    strange = value[:after_header] + chunk(b"acTL", struct.pack(">II", 0, 0)) + value[after_header:]
    with pytest.warns(UserWarning, match="Invalid APNG"):  # what Pillow says to it
        Image.open(BytesIO(strange)).close()
    np.testing.assert_array_equal(decode(strange), SMOOTH_3HW)


def test_metadata_of_a_jpeg_is_not_even_read() -> None:
    value = encode_jpeg(SMOOTH_3HW)
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30
    segments = b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data
        for marker, data in [(0xE1, exif), (0xE2, b"ICC_PROFILE\0\1\1"), (0xED, b"Photoshop 3.0\0"), (0xFE, b"comment")]
    )
    np.testing.assert_array_equal(decode(value[:2] + segments + value[2:], JpegCodec()), decode(value, JpegCodec()))


def test_a_jpeg_with_fill_bytes_and_junk_between_segments() -> None:
    value = encode_jpeg(SMOOTH_3HW)
    np.testing.assert_array_equal(
        decode(value[:2] + b"\0\x01\xff\xff\xff" + value[2:], JpegCodec()), decode(value, JpegCodec())
    )


@pytest.mark.parametrize(
    "value", [b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xe0\0\0", b"GIF89a"]
)
def test_stumps_of_jpegs(value: bytes) -> None:
    assert reason(value, JpegCodec()) == DeadLetterReason.BROKEN_IMAGE
