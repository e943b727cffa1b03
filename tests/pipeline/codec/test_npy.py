from __future__ import annotations

import tracemalloc
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.codec.npy import NpyCodec, encode_npy
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings
from pipeline.user_error import UserError

PROPERTY = settings(max_examples=150)
DTYPES = [f"{order}{kind}" for order in "<>" for kind in ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")]
DTYPES += ["i1", "u1", "?"]


def decode(value: bytes, shape: tuple[int, ...] | None = None) -> npt.NDArray[np.generic]:
    payload = NpyCodec().decode(value, {}, InputSettings(shape=shape))
    assert payload.kind == "vector"
    return payload.x


def reason(value: bytes, shape: tuple[int, ...] | None = None) -> DeadLetterReason:
    with pytest.raises(BadRecord) as caught:
        decode(value, shape)
    return caught.value.reason


def saved(x: npt.NDArray[Any], **options: Any) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array(buffer, x, **options)
    return buffer.getvalue()


def with_header(header: str, data: bytes = b"") -> bytes:
    raw = header.encode()
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + data


@PROPERTY
@given(data=st.data(), version=st.sampled_from([(1, 0), (2, 0), (3, 0)]), fortran=st.booleans())
def test_reads_what_numpy_load_reads(data: st.DataObject, version: tuple[int, int], fortran: bool) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    elements: Any = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    if dtype.itemsize == 8 and dtype.kind == "f":
        elements |= {"min_value": -1e38, "max_value": 1e38}
    x = data.draw(
        hnp.arrays(dtype, hnp.array_shapes(max_dims=8, max_side=3), elements=hnp.from_dtype(dtype, **elements))
    )
    value = saved(np.asfortranarray(x) if fortran else x, version=version)

    read = decode(value)

    expected = np.load(BytesIO(value), allow_pickle=False).astype(np.float32)
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    assert read.flags.writeable
    np.testing.assert_array_equal(read, expected)


@PROPERTY
@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_float32_round_trip(x: npt.NDArray[np.float32]) -> None:
    value = encode_npy(x)
    np.testing.assert_array_equal(decode(value, x.shape), x)
    np.testing.assert_array_equal(np.load(BytesIO(value)), x)


def test_every_truncation_is_a_broken_array() -> None:
    value = encode_npy(np.arange(6, dtype=np.float32))
    assert {reason(value[:length]) for length in range(1, len(value))} == {DeadLetterReason.BROKEN_ARRAY}


def test_bytes_after_the_array_make_it_broken() -> None:
    assert reason(encode_npy(np.ones(3)) + b"\0") == DeadLetterReason.BROKEN_ARRAY


def test_a_header_that_claims_a_huge_array_allocates_nothing() -> None:
    value = with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000, 3), }", b"1234")
    tracemalloc.start()
    try:
        assert reason(value) == DeadLetterReason.BROKEN_ARRAY
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize(
    "x",
    [
        np.array([1 + 2j]),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array([("a", 1)], dtype=[("name", "U1"), ("value", "i4")]),
        np.array([("ä", 1)], dtype=[("näme", "U1"), ("value", "i4")]),
        np.array(["2024-01-01"], dtype="datetime64[D]"),
        np.array([1.0], dtype=np.longdouble),
    ],
    ids=lambda x: str(x.dtype),
)
def test_what_is_no_number_is_of_the_wrong_type(x: npt.NDArray[Any]) -> None:
    version = (3, 0) if x.dtype.names == ("näme", "value") else (1, 0)
    assert reason(saved(x, version=version)) == DeadLetterReason.WRONG_TYPE
    with pytest.raises(UserError, match="array payload"):
        encode_npy(x)


def test_a_pickle_is_refused_and_not_run() -> None:
    value = saved(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    # of the right length for any dtype it could claim: the type is what refuses it
    assert reason(value) == DeadLetterReason.WRONG_TYPE


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39, -1e300])
@pytest.mark.parametrize("dtype", ["<f8", ">f8"])
def test_what_is_not_finite_in_float32(bad: float, dtype: str) -> None:
    assert reason(encode_npy(np.array([[1.0, bad]], dtype=dtype))) == DeadLetterReason.NOT_FINITE


def test_the_position_of_what_is_not_finite_is_named() -> None:
    with pytest.raises(BadRecord, match="value nan at position 2"):
        decode(encode_npy(np.array([0, 1, np.nan, np.nan], dtype=np.float16)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,) * 9])
def test_shapes_that_cannot_be_learnt_from(shape: tuple[int, ...]) -> None:
    assert reason(saved(np.ones(shape))) == DeadLetterReason.WRONG_SHAPE
    with pytest.raises(UserError, match="axes"):
        encode_npy(np.ones(shape))


def test_another_shape_than_the_settings_one() -> None:
    value = encode_npy(np.ones((2, 3), dtype=np.float32))
    assert decode(value, (2, 3)).shape == (2, 3)
    assert reason(value, (3, 2)) == DeadLetterReason.WRONG_SHAPE
    assert reason(value, (6,)) == DeadLetterReason.WRONG_SHAPE


def test_uint8_stays_values() -> None:
    np.testing.assert_array_equal(decode(encode_npy(np.array([0, 128, 255], dtype=np.uint8))), [0.0, 128.0, 255.0])


def test_any_byte_but_zero_is_true() -> None:
    header = "{'descr': '|b1', 'fortran_order': False, 'shape': (4,), }"
    np.testing.assert_array_equal(decode(with_header(header, b"\0\1\2\xff")), [0, 1, 1, 1])


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }",
        "{'shape': (2,), 'fortran_order': False, 'descr': '<f4'}   \n",
        '{"descr":"<f4","fortran_order":False,"shape":(2,)}',
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }",
    ],
)
def test_headers_of_other_writers(header: str) -> None:
    np.testing.assert_array_equal(decode(with_header(header, np.array([1, 2], "<f4").tobytes())), [1, 2])


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{}",
        "[]",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': [2]}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 4000 + ", " + "9" * 4000 + ")}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': '\\d'}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 9000 + "2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1+" * 4500 + "2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2" + ".a" * 4500 + ",)}",
        "{'descr': 'no type', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': 3, 'fortran_order': False, 'shape': (2,)}",
        "\0",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 65 + ")}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').getcwd()}",
        "(" * 9000,
    ],
    ids=lambda header: header[:60],
)
def test_headers_that_are_none(header: str) -> None:
    assert reason(with_header(header, b"12345678")) == DeadLetterReason.BROKEN_ARRAY


def test_unknown_versions_and_magic() -> None:
    value = encode_npy(np.ones(2))
    assert reason(b"PK\x03\x04" + value) == DeadLetterReason.BROKEN_ARRAY
    assert reason(value[:6] + b"\x04\x00" + value[8:]) == DeadLetterReason.BROKEN_ARRAY
