"""text/plain: UTF-8 (or ASCII) text as token ids (`tokenizer.py`). An empty text is no payload.

Nothing is normalised: case, spaces and a byte order mark stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.codec.payload_codec import Payload, PayloadCodec, quoted
from pipeline.codec.tokenizer import tokenize
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings
from pipeline.user_error import UserError

# ASCII is UTF-8. Other charsets are refused rather than guessed at: one that is wrong in the header (it happens) would
# decode to wrong characters without any error.
CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")


class TextCodec(PayloadCodec):
    content_types = ("text/plain",)

    def decode(self, value: bytes, parameters: Mapping[str, str], settings: InputSettings) -> Payload:
        charset = parameters.get("charset", "utf-8")
        if charset.lower() not in CHARSETS:
            raise BadRecord(
                DeadLetterReason.UNKNOWN_CONTENT_TYPE, f"text/plain with charset {quoted(charset)}; known is UTF-8"
            )
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRecord(
                DeadLetterReason.TEXT_NOT_UTF8, f"{error.reason} at byte {error.start} of {len(value)}"
            ) from error
        return text_payload(text, settings)


def encode_text(text: str) -> bytes:
    """UTF-8. Raises `UserError` on an empty text and on lone surrogates, which UTF-8 cannot hold."""
    if text == "":
        raise UserError("a text payload must not be empty; leave the record out")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"a text payload must be valid Unicode; {quoted(text)} holds a lone surrogate") from error


def text_payload(text: str, settings: InputSettings, label: object = None) -> Payload:
    """The token ids of a text that was read from any payload, or `BadRecord`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # only JSON's \ud800 escapes bring one here
        raise BadRecord(DeadLetterReason.TEXT_NOT_UTF8, f"a lone surrogate at character {error.start}") from error
    ids_T = tokenize(text, settings)
    # A row of nothing but padding gives an attention without anything to attend to: NaN.
    if not ids_T.any():
        raise BadRecord(DeadLetterReason.NO_PAYLOAD, f"no token in the text {quoted(text)}")
    return Payload(ids_T, "text", label)
