"""An image file without its metadata: only what the pixels need is given to Pillow.

Colour profiles, EXIF, comments, thumbnails and animation chunks are never used here, yet parsing them costs time, gives
an attacker more parsers to aim at, and makes Pillow emit Python warnings on files whose pixels are sound. Without this
file Pillow also refuses sound pixels for their metadata: a colour profile of over 1 MiB, a truncated gAMA or acTL
chunk, a torn Photoshop segment.
"""

from __future__ import annotations

from pipeline.sample import BadRecord, DeadLetterReason

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")

JPEG_START = b"\xff\xd8"
JPEG_SCAN = 0xDA
# All application segments but APP0 (JFIF) and APP14 (Adobe), which tell how colours are coded; and comments.
JPEG_METADATA = frozenset([*range(0xE1, 0xEE), 0xEF, 0xFE])
JPEG_WITHOUT_LENGTH = frozenset([0x00, 0x01, *range(0xD0, 0xD9)])  # a stuffed zero, TEM, RST0-7, SOI


def bare_png(value: bytes) -> bytes:
    """Signature and pixel chunks up to IEND. `BadRecord` where the file ends before that."""
    if not value.startswith(PNG_SIGNATURE):
        raise _broken("not a PNG: its signature is missing")
    kept, position, name = [PNG_SIGNATURE], 8, b""
    while name != b"IEND":
        if position + 12 > len(value):
            raise _broken(f"the PNG ends at byte {len(value)}, before its IEND chunk")
        name = value[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(value[position : position + 4], "big")  # length, name, data, checksum
        if end > len(value):
            raise _broken(f"a PNG chunk at byte {position} runs past the end of the payload")
        if name in PNG_PIXEL_CHUNKS:
            kept.append(value[position:end])
        position = end
    return b"".join(kept)


def bare_jpeg(value: bytes) -> bytes:
    """The segments before the first scan without metadata, and all from there on. `BadRecord` without a scan."""
    if not value.startswith(JPEG_START):
        raise _broken("not a JPEG: its start marker is missing")
    kept, position = [JPEG_START], 2
    while True:
        # Bytes that belong to no segment are skipped and 0xFF may be repeated, as libjpeg has it.
        position = value.find(b"\xff", position)
        while position != -1 and value[position + 1 : position + 2] == b"\xff":
            position += 1
        if position == -1 or position + 4 > len(value):
            raise _broken(f"the JPEG ends at byte {len(value)}, before its first scan")
        marker = value[position + 1]
        if marker == JPEG_SCAN:
            kept.append(value[position:])
            return b"".join(kept)
        if marker in JPEG_WITHOUT_LENGTH:
            position += 2
            continue
        length = int.from_bytes(value[position + 2 : position + 4], "big")  # counts its own two bytes
        end = position + 2 + max(2, length)
        if marker not in JPEG_METADATA:
            kept.append(value[position:end])
        position = end


def _broken(detail: str) -> BadRecord:
    return BadRecord(DeadLetterReason.BROKEN_IMAGE, detail)
