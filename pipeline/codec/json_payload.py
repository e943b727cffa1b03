"""application/json: the payload (and, without a `ce_label` header, the label) at dotted paths inside one document.

At `json_payload_field` a string is a text, and a rectangular nest of lists of numbers is a vector. A string or an
integer at `json_label_field` is a label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.npy import check_shape, finite_float32
from pipeline.codec.payload_codec import Payload, PayloadCodec, quoted
from pipeline.codec.text import text_payload
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings


class JsonCodec(PayloadCodec):
    content_types = ("application/json",)

    def decode(self, value: bytes, parameters: Mapping[str, str], settings: InputSettings) -> Payload:
        document = _document(value)
        label = _at(document, settings.json_label_field)
        content = _at(document, settings.json_payload_field)
        if content is None or content == "":
            raise BadRecord(
                DeadLetterReason.NO_PAYLOAD, f"nothing at json_payload_field {settings.json_payload_field!r}"
            )
        if isinstance(content, str):
            return text_payload(content, settings, label)
        if isinstance(content, list):
            return Payload(_vector(content, settings), "vector", label)
        raise BadRecord(
            DeadLetterReason.WRONG_TYPE,
            f"{type(content).__name__} at {settings.json_payload_field!r}, where a text or a list of numbers is known",
        )


def json_label(value: bytes, settings: InputSettings) -> object:
    """What stands at `json_label_field`; None where nothing does. The payload is not looked at. Raises `BadRecord`."""
    return _at(_document(value), settings.json_label_field)


def _document(value: bytes) -> Any:
    try:
        # RFC 8259: JSON between systems is UTF-8; a byte order mark may be ignored
        return json.loads(value.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRecord(
            DeadLetterReason.BROKEN_JSON, f"not UTF-8: {error.reason} at byte {error.start} of {len(value)}"
        ) from error
    except ValueError as error:  # not JSON, or an integer of more digits than Python converts (4300)
        raise BadRecord(DeadLetterReason.BROKEN_JSON, quoted(str(error), limit=160)) from error
    except RecursionError as error:
        raise BadRecord(DeadLetterReason.BROKEN_JSON, "nested too deeply") from error


def _at(document: Any, path: str) -> Any:
    """What stands at a dotted path of object keys; None where it leads nowhere."""
    for key in path.split("."):
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def _vector(nest: list[Any], settings: InputSettings) -> npt.NDArray[np.float32]:
    """Level by level, without recursion.

    The types are looked at before numpy sees the values: strings among numbers it would parse, or unpack into an array
    of (longest string x elements) bytes, and None would become NaN.
    """
    shape, level = [len(nest)], nest
    while level and all(isinstance(entry, list) for entry in level):
        lengths = {len(entry) for entry in level}
        if len(lengths) > 1:
            raise BadRecord(DeadLetterReason.WRONG_SHAPE, f"lists of lengths {quoted(sorted(lengths))} side by side")
        shape.append(lengths.pop())
        level = list(chain.from_iterable(level))
    check_shape(tuple(shape), settings)
    types = set(map(type, level))
    if list in types:
        raise BadRecord(DeadLetterReason.WRONG_SHAPE, f"lists beside values at depth {len(shape)}")
    if not types <= {int, float, bool}:
        names = ", ".join(sorted(kind.__name__ for kind in types))
        raise BadRecord(DeadLetterReason.WRONG_TYPE, f"an array of {names}, where numbers are known")
    try:
        x_float64 = np.array(level, dtype=np.float64)
    except OverflowError as error:
        raise BadRecord(DeadLetterReason.NOT_FINITE, "an integer beyond the range of floating point") from error
    return finite_float32(x_float64).reshape(shape)
