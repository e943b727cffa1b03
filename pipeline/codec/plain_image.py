"""The pixels of image files of the usual kind: Pillow's decoders, without its parsing of the file around the pixels.

For a small image Pillow's parsing takes longer than the pixels. Usual are JPEGs and PNGs of 8 bits in grey or RGB: of a
PNG those without a palette, transparency and interlacing. Only what Pillow would hand to its decoder in one piece, so
that the decoder does exactly what it does for Pillow. Whatever is unusual or broken is left to Pillow itself, which
also says what is wrong with it.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from PIL import Image, ImageFile

from pipeline.codec.bare_image import JPEG_SCAN

# Baseline, extended sequential and progressive, Huffman coded.
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
_JPEG_MODES = {1: "L", 3: "RGB"}  # by components
_JPEG_APP0 = 0xE0
_JPEG_APP0_LEAST = 11  # marker, length, and what Pillow reads of a JFIF header
_PNG_MODES = {0: "L", 2: "RGB"}  # by colour type


class PlainImage(NamedTuple):
    """Enough to unpack it."""

    mode: str  # L or RGB
    size: tuple[int, int]  # width, height
    decoder: str
    arguments: tuple[str, ...]
    data: bytes

    def unpacked(self) -> Image.Image:
        """Raises `ValueError` where the data are broken or end too early."""
        return Image.frombytes(self.mode, self.size, self.data, self.decoder, self.arguments)


def plain_jpeg(bare: bytes) -> PlainImage | None:
    """Of `bare_jpeg`'s bytes; None where it is of another kind."""
    if len(bare) > ImageFile.MAXBLOCK:
        return None
    position, frame = 2, b""
    while (marker := bare[position + 1]) != JPEG_SCAN:
        end = position + 2 + int.from_bytes(bare[position + 2 : position + 4], "big")
        if bare[position] != 0xFF or end >= len(bare) - 1 or (frame and marker in _JPEG_FRAMES):
            return None
        if marker in _JPEG_FRAMES:
            frame = bare[position + 4 : end]
        if marker == _JPEG_APP0 and end - position < _JPEG_APP0_LEAST:  # Pillow reads its version, and fails
            return None
        position = end
    # bits, height, width, components
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in _JPEG_MODES:
        return None
    mode = _JPEG_MODES[frame[5]]
    size = int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
    return PlainImage(mode, size, "jpeg", (mode, ""), bare) if 0 not in size else None


def plain_png(bare: bytes) -> PlainImage | None:
    """Of `bare_png`'s bytes; None where it is of another kind."""
    if len(bare) > ImageFile.MAXBLOCK or bare[8:16] != b"\x00\x00\x00\rIHDR":
        return None
    header = bare[16:29]  # width, height, bits, colour type, compression, filter, interlacing
    if header[8] != 8 or header[9] not in _PNG_MODES or any(header[10:]):
        return None
    if zlib.crc32(bare[12:29]) != int.from_bytes(bare[29:33], "big"):
        return None
    parts, position = [], 33
    while (name := bare[position + 4 : position + 8]) == b"IDAT":
        end = position + 12 + int.from_bytes(bare[position : position + 4], "big")
        parts.append(bare[position + 8 : end - 4])
        position = end
    size = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    if name != b"IEND" or not parts or 0 in size:
        return None
    mode = _PNG_MODES[header[9]]
    return PlainImage(mode, size, "zip", (mode,), b"".join(parts))
