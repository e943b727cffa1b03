"""Kafka record bytes <-> Sample. Every file that holds a `PayloadCodec` is found without being listed anywhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TypeGuard

from pipeline.codec.payload_codec import PayloadCodec


@cache
def payload_codecs() -> Mapping[str, PayloadCodec]:
    """{content type in lower case: its codec} of every codec in this folder."""
    codecs: dict[str, PayloadCodec] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if member.__module__ != module.__name__ or not _is_codec(member):
                continue
            codec = member()
            for content_type in codec.content_types:
                assert content_type == content_type.lower(), f"{member.__name__}: {content_type!r} is not lower case"
                assert content_type not in codecs, f"{member.__name__}: {content_type} has a codec already"
                codecs[content_type] = codec
    return MappingProxyType(codecs)


def _is_codec(member: type) -> TypeGuard[type[PayloadCodec]]:
    return issubclass(member, PayloadCodec) and not inspect.isabstract(member)
