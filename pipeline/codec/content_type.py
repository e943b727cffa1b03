"""A media type header, taken apart (RFC 9110, section 8.3.1): `text/plain; charset="utf-8"`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from pipeline.codec.payload_codec import quoted
from pipeline.sample import BadRecord, DeadLetterReason

MAX_CHARACTERS = 256
MEDIA_TYPE = re.compile(r"\s*([!#$%&'*+.^_`|~0-9a-zA-Z-]+/[!#$%&'*+.^_`|~0-9a-zA-Z-]+)\s*(?:;|\Z)")
PARAMETER = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9a-zA-Z-]+)\s*=\s*(?:"([^"\\]*)"|([^\s;"]*))\s*(?:;|\Z)|\s*(?:;|\Z)""")


class ContentType(NamedTuple):
    media_type: str  # lower case
    parameters: Mapping[str, str]  # names in lower case


@lru_cache(maxsize=64)  # a stream's records all say the same
def parse_content_type(text: str) -> ContentType:
    """Raises `BadRecord` (UNKNOWN_CONTENT_TYPE) on what is no media type; of repeated parameters the first counts."""
    match = MEDIA_TYPE.match(text) if len(text) <= MAX_CHARACTERS else None
    if match is None:
        raise BadRecord(DeadLetterReason.UNKNOWN_CONTENT_TYPE, f"{quoted(text)} is not a media type")
    media_type, parameters = match[1].lower(), dict[str, str]()
    position = match.end()
    while position < len(text):
        match = PARAMETER.match(text, position)
        if match is None:
            raise BadRecord(DeadLetterReason.UNKNOWN_CONTENT_TYPE, f"{quoted(text)} has a malformed parameter")
        if match[1] is not None:
            parameters.setdefault(match[1].lower(), match[3] if match[2] is None else match[2])
        position = match.end()
    return ContentType(media_type, parameters)
