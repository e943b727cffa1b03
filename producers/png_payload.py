"""PNG of small images, four times as fast as by way of Pillow (23 against 100 us for 28 x 28), which a producer feels.

Only what is needed of the format (W3C PNG, third edition): 8 bits, grey or RGB, no interlacing, no filters. Photographs
pack worse without filters, which is why those are left to the codec.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from pipeline.codec.image import encode_png

SMALL_PIXELS = 64 * 64
_GREY, _RGB = 0, 2  # PNG's colour types
_LEVEL = 1  # of zlib: more takes twice as long and saves 3 % on digits


def encode_png_fast(image_HWC: npt.NDArray[np.uint8]) -> bytes:
    """uint8 (H, W) or (H, W, 3) as a PNG."""
    height, width = image_HWC.shape[:2]
    if height * width > SMALL_PIXELS:
        return encode_png(image_HWC[None] if image_HWC.ndim == 2 else image_HWC.transpose(2, 0, 1))
    colour = _GREY if image_HWC.ndim == 2 else _RGB
    lines = np.zeros((height, 1 + image_HWC[0].size), dtype=np.uint8)  # a line begins with its filter: 0, none
    lines[:, 1:] = image_HWC.reshape(height, -1)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), _LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
