"""application/x-npy: arrays as `numpy.save` writes them (NEP 1, versions 1 to 3), learnt from as float32.

Numbers of any kind (float16/32/64, ints, bool; either byte order; C or Fortran order) become float32 values, uint8 too:
an array is a `vector`, whatever its shape. Objects (pickles), structures, complex numbers and text are refused.

numpy reads the header, but `numpy.load` does not read the rest: it allocates whatever size the header claims. Here a
payload whose length is not the one that its header claims is refused before anything is allocated.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from math import prod
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from pipeline.codec.payload_codec import MAX_DIMENSIONS, Payload, PayloadCodec, quoted
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings
from pipeline.user_error import UserError

MAX_HEADER_BYTES = 10_000  # numpy.load's own limit
ITEM_SIZES = {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "b": (1,)}

_WARNINGS = Lock()  # Python's warning filters belong to the whole process


class NpyCodec(PayloadCodec):
    content_types = ("application/x-npy",)

    def decode(self, value: bytes, parameters: Mapping[str, str], settings: InputSettings) -> Payload:
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


def encode_npy(x: npt.NDArray[Any]) -> bytes:
    """An .npy file of format version 1. Raises `UserError` for dtypes and sizes that `NpyCodec.decode` refuses."""
    if x.dtype.kind not in ITEM_SIZES or x.dtype.itemsize not in ITEM_SIZES[x.dtype.kind]:
        raise UserError(f"an array payload holds bool, int or float16/32/64 values; got {x.dtype}; convert it first")
    if x.size == 0 or not 1 <= x.ndim <= MAX_DIMENSIONS:
        raise UserError(f"an array payload has 1 to {MAX_DIMENSIONS} axes, none of length 0; got shape {x.shape}")
    buffer = BytesIO()
    npy_format.write_array(buffer, x, version=(1, 0), allow_pickle=False)
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
    if x.dtype == np.float32:
        x_float32 = x.copy()  # nothing is cast, so nothing can warn
    else:
        with np.errstate(all="ignore"):  # the cast's overflow is found below, and must not warn
            x_float32 = x.astype(np.float32)
    finite = np.isfinite(x_float32)
    if np.count_nonzero(finite) != finite.size:  # a third of the time of `finite.all()`
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
    """The header, and where the data starts: after magic, version, the header's length (little-endian) and itself."""
    length_end = 10 if value[6:7] == b"\x01" else 12
    length = int.from_bytes(value[8:length_end], "little")
    start = length_end + length
    if length > MAX_HEADER_BYTES or start > len(value):
        raise _broken(f"a header of {length} bytes in a payload of {len(value)}")
    return _parse_header(value[:start]), start


@lru_cache(maxsize=64)  # the records of a stream all carry the same header; parsing it is most of the work
def _parse_header(raw: bytes) -> _Header:
    shape, fortran_order, dtype = _read_header(raw)
    if dtype.kind not in ITEM_SIZES or dtype.itemsize not in ITEM_SIZES[dtype.kind]:
        raise BadRecord(
            DeadLetterReason.WRONG_TYPE, f"dtype {quoted(str(dtype))}; known are bool, ints and float16/32/64"
        )
    if not all(0 <= length < 2**62 for length in shape):
        raise _broken("a negative or impossible length in the shape")
    return _Header(
        dtype=np.dtype(np.uint8) if dtype.kind == "b" else dtype,
        boolean=dtype.kind == "b",
        fortran_order=fortran_order,
        shape=tuple(int(length) for length in shape),  # numpy takes True for a length
        size=prod(shape),
    )


def _read_header(raw: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        # it warns of headers that Python 2 wrote, and Python warns of some literals
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = BytesIO(raw)
            version = npy_format.read_magic(file)
            if version == (1, 0):
                return npy_format.read_array_header_1_0(file, max_header_size=MAX_HEADER_BYTES)
            if version in ((2, 0), (3, 0)):  # 3.0 is 2.0 with UTF-8 in the names of fields, and we take no fields
                return npy_format.read_array_header_2_0(file, max_header_size=MAX_HEADER_BYTES)
    except Exception as error:  # the header is evaluated as a Python literal: broken ones raise almost anything
        raise _broken(f"{type(error).__name__}: {quoted(str(error))}") from error
    raise _broken(f".npy format version {version[0]}.{version[1]}, where 1.0, 2.0 and 3.0 are known")


def _broken(detail: str) -> BadRecord:
    return BadRecord(DeadLetterReason.BROKEN_ARRAY, detail)
