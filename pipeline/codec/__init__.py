"""Kafka record bytes <-> Sample. Every file that holds a `PayloadCodec` is found without being listed anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from pipeline.codec.payload_codec import PayloadCodec
from pipeline.discovery import subclasses_in


@cache
def payload_codecs() -> Mapping[str, PayloadCodec]:
    """{content type in lower case: its codec} of every codec in this folder."""
    codecs: dict[str, PayloadCodec] = {}
    for _, member in subclasses_in(__name__, PayloadCodec):  # type: ignore[type-abstract]
        codec = member()
        for content_type in codec.content_types:
            assert content_type == content_type.lower(), f"{member.__name__}: {content_type!r} is not lower case"
            assert content_type not in codecs, f"{member.__name__}: {content_type} has a codec already"
            codecs[content_type] = codec
    return MappingProxyType(codecs)
