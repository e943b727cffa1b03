"""Bytes and text that anybody may have written, shown so that a terminal obeys none of it."""

from __future__ import annotations

import codecs

_PREVIEW_BYTES = 256
_MAX_SHOWN_CHARACTERS = 2_000


def printable(text: str) -> str:
    """Every character that a terminal might obey, or that turns the writing around, as an escape."""
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[:_MAX_SHOWN_CHARACTERS]
    )
    return shown if len(text) <= _MAX_SHOWN_CHARACTERS else f"{shown}... ({len(text):,} characters)"


def printable_bytes(value: bytes | None) -> str:
    """Text where it is UTF-8, else hexadecimal."""
    if value is None:
        return "null"
    try:
        return printable(value.decode())
    except UnicodeDecodeError:
        return f"{len(value):,} bytes, not UTF-8: {value[:64].hex(' ')}{' ...' if len(value) > 64 else ''}"


def preview(value: bytes) -> list[str]:
    """The beginning: text where it is UTF-8, else as `hexdump -C` shows it."""
    head = value[:_PREVIEW_BYTES]
    more = [f"... {len(value) - len(head):,} bytes more"] if len(value) > len(head) else []
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return [printable(decoder.decode(head, final=not more)), *more]  # the cut may go through a character
    except UnicodeDecodeError:
        return [
            f"{at:08x}  {head[at : at + 16].hex(' '):<47}  "
            + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in head[at : at + 16])
            for at in range(0, len(head), 16)
        ] + more
