"""application/x-npy: arrays as `numpy.save` writes them (NEP 1, versions 1 to 3), learnt from as float32.

Numbers of any kind (float16/32/64, ints, bool; either byte order; C or Fortran order) become float32 values, uint8 too:
an array is a `vector`, whatever its shape. Objects (pickles), structures, complex numbers and text are refused.

Why the header is read here and not by `numpy.load`: numpy evaluates it as a Python literal, which takes longer than
all the rest, can warn, and comes after an allocation of whatever size the header claims. Here a payload whose length is
not the one that its header claims is refused before anything is allocated. The tests hold it against `numpy.load`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.codec.payload_codec import MAX_DIMENSIONS, Payload, PayloadCodec, quoted
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings
from pipeline.user_error import UserError

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000  # numpy.load's own limit
LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's length field, by format version
ITEM_SIZES = {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "b": (1,)}
DESCR = re.compile(r"[<>=|]?([a-zA-Z])([0-9]{1,9})")
# One entry of the header's dict; readers must not depend on the entries' order (NEP 1). "L": arrays from Python 2.
FIELD = re.compile(
    r"""\s*(['"])(?P<key>descr|fortran_order|shape)\1\s*:\s*"""
    r"""(?:(?P<quote>['"])(?P<descr>[^'"]*)(?P=quote)|(?P<order>True|False)|\((?P<shape>[0-9L,\s]*)\))\s*(?:,|$)"""
)


class NpyCodec(PayloadCodec):
    content_types = ("application/x-npy",)

    def decode(self, value: bytes, parameters: Mapping[str, str], settings: InputSettings) -> Payload:  # noqa: ARG002
        """1. The header, 2. the length it claims against the length there is, 3. the shape, 4. the values."""
        # 1.
        header, start = _header(value)
        # 2.
        expected = header.size * header.dtype.itemsize
        if len(value) - start != expected:
            raise BadRecord(
                DeadLetterReason.BROKEN_ARRAY,
                f"{quoted(header.shape)} of {header.dtype} is {quoted(expected)} bytes; there are {len(value) - start}",
            )
        # 3.
        check_shape(header.shape, settings)
        # 4.
        flat = np.frombuffer(value, dtype=header.dtype, offset=start)
        if header.boolean:
            flat = flat != 0  # a byte other than 0 and 1 is no bool in memory, so it is never viewed as one
        x = finite_float32(flat)
        if header.fortran_order:
            return Payload(np.ascontiguousarray(x.reshape(header.shape[::-1]).T), "vector")
        return Payload(x.reshape(header.shape), "vector")

    def encode(self, x: Any) -> bytes:
        """Any array of numbers, in its own dtype."""
        return encode_npy(np.asarray(x))


def encode_npy(x: npt.NDArray[Any]) -> bytes:
    """An .npy file of format version 1. Raises `UserError` for dtypes and sizes that `NpyCodec.decode` refuses."""
    if x.dtype.kind not in ITEM_SIZES or x.dtype.itemsize not in ITEM_SIZES[x.dtype.kind]:
        raise UserError(f"an array payload holds bool, int or float16/32/64 values; got {x.dtype}; convert it first")
    if x.size == 0 or not 1 <= x.ndim <= MAX_DIMENSIONS:
        raise UserError(f"an array payload has 1 to {MAX_DIMENSIONS} axes, none of length 0; got shape {x.shape}")
    buffer = BytesIO()
    np.lib.format.write_array(buffer, x, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def check_shape(shape: tuple[int, ...], settings: InputSettings) -> None:
    """Raise `BadRecord` unless an array of this shape may be learnt from."""
    if settings.shape is not None and shape != settings.shape:
        raise BadRecord(DeadLetterReason.WRONG_SHAPE, f"shape {quoted(shape)}, where {settings.shape} is set")
    if not 1 <= len(shape) <= MAX_DIMENSIONS or 0 in shape:
        raise BadRecord(
            DeadLetterReason.WRONG_SHAPE,
            f"shape {quoted(shape)}, where an array has 1 to {MAX_DIMENSIONS} axes, none of length 0",
        )


def finite_float32(x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A float32 copy, or `BadRecord`; a float64 that float32 cannot hold is infinite there and refused as well."""
    with np.errstate(all="ignore"):  # the cast's overflow is found below, and must not warn
        x_float32 = x.astype(np.float32)
    finite = np.isfinite(x_float32)
    if not finite.all():
        at = int(np.argmin(finite))
        raise BadRecord(DeadLetterReason.NOT_FINITE, f"value {x.flat[at]!s} at position {at} is not finite in float32")
    return x_float32


class _Header(NamedTuple):
    dtype: np.dtype[Any]  # as stored, byte order included; uint8 for bool
    boolean: bool
    fortran_order: bool
    shape: tuple[int, ...]
    size: int  # elements


def _header(value: bytes) -> tuple[_Header, int]:
    """The header, and where the data starts."""
    if value[:6] != MAGIC or len(value) < 10:
        raise _broken(f"starts with {quoted(value[:6])}, not with .npy's magic bytes")
    version = (value[6], value[7])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise _broken(f".npy format version {version[0]}.{version[1]}, where 1.0, 2.0 and 3.0 are known")
    length_end = 8 + LENGTH_BYTES[value[6]]
    length = int.from_bytes(value[8:length_end], "little")
    start = length_end + length
    if length > MAX_HEADER_BYTES or start > len(value):
        raise _broken(f"a header of {length} bytes in a payload of {len(value)}")
    return _parse_header(value[length_end:start]), start


@lru_cache(maxsize=64)  # the records of a stream all carry the same header; parsing it is most of the work
def _parse_header(raw: bytes) -> _Header:
    text = raw.decode("latin-1").strip()
    if not (text.startswith("{") and text.endswith("}")):
        raise _broken(f"header {quoted(text)} is not a dict")
    if re.search(r"""['"]descr['"]\s*:\s*[\[(]""", text):
        raise BadRecord(DeadLetterReason.WRONG_TYPE, f"a structured array, where numbers are known: {quoted(text)}")
    fields: dict[str, str] = {}
    body, position = text[1:-1].rstrip(), 0
    while position < len(body):
        match = FIELD.match(body, position)
        content = match and match["order" if match["key"] == "fortran_order" else match["key"]]
        if match is None or content is None or match["key"] in fields:
            raise _broken(f"header {quoted(text)} is not that of an array")
        fields[match["key"]] = content
        position = match.end()
    if len(fields) != 3:
        raise _broken(f"header {quoted(text)} lacks descr, fortran_order or shape")
    dtype = _dtype(fields["descr"])
    shape = _shape(fields["shape"])
    return _Header(
        dtype=np.dtype(np.uint8) if dtype.kind == "b" else dtype,
        boolean=dtype.kind == "b",
        fortran_order=fields["fortran_order"] == "True",
        shape=shape,
        size=prod(shape),
    )


def _dtype(descr: str) -> np.dtype[Any]:
    match = DESCR.fullmatch(descr)
    kind, size = (match[1], int(match[2])) if match else (descr, 0)
    if match is None or kind not in ITEM_SIZES or size not in ITEM_SIZES[kind]:
        raise BadRecord(DeadLetterReason.WRONG_TYPE, f"dtype {quoted(descr)}; known are bool, ints and float16/32/64")
    return np.dtype(descr)


def _shape(text: str) -> tuple[int, ...]:
    lengths = [part.strip().removesuffix("L") for part in text.split(",")]
    if lengths[-1] == "":
        lengths.pop()
    # 18 digits: more bytes than there are, and still an int that is quick to multiply
    if len(lengths) > 64 or not all(part.isdecimal() and len(part) <= 18 for part in lengths):
        raise _broken(f"shape ({quoted(text)}) is not a tuple of lengths")
    return tuple(int(part) for part in lengths)


def _broken(detail: str) -> BadRecord:
    return BadRecord(DeadLetterReason.BROKEN_ARRAY, detail)
