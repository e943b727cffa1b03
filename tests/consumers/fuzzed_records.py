"""Malformed records by mutation of real ones, with good ones and repeats among them: a stream of any length by seed.

Record `number` of a stream is a function of (seed, kind, number) alone, and its `fate` says what must become of it:
"good" is learnt from (or held out), "repeat" is dropped, "bad" is a dead letter, "any" may be any of these.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format
from PIL import Image

from pipeline import keyed_randomness
from pipeline.codec.image import encode_jpeg, encode_png
from pipeline.sample import InputKind
from tests.consumers.digit_records import Written, digit_images

# The first records of a stream are good ones: they fix its shape and make its classes known.
GOOD_AT_FIRST = 60
CLASSES = 5
# A poisoned record every so many: more than 5 of 100 that come to be trained on mean that the weights have diverged.
POISON_EVERY = 150
REPEATS_REACH = 300
PNG, JPEG, NPY, JSON, TEXT = (
    b"image/png",
    b"image/jpeg",
    b"application/x-npy",
    b"application/json",
    b"text/plain",
)
# Integers, and floats whose largest are small: whatever bits are turned in them, the weights can bear it.
_TAME_DTYPES = ("<i2", ">i2", "|u1", "|i1", "|b1", "<f2")
_SHAPE = (2, 4)
# Beyond ASCII, beyond 16 bits, a null and a mark that turns the line round
_WORDS = ("Grüße", "aus", "東京", "😀", "the", "quick", "fox", "jumps", "over", "dogs", "ÿ\x00", "\u202e", "end")

_Chosen = TypeVar("_Chosen")


@dataclass
class _Draft:
    """A record that is being spoilt."""

    random: np.random.Generator
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    key: bytes | None

    def below(self, limit: int) -> int:
        return int(self.random.integers(limit))

    def one_of(self, choices: tuple[_Chosen, ...] | list[_Chosen]) -> _Chosen:
        return choices[self.below(len(choices))]

    def set(self, name: str, value: bytes | None) -> None:
        """The header of that name has this value; a new one where there was none."""
        self.headers = [*((n, v) for n, v in self.headers if n != name), (name, value)]

    def drop(self, name: str) -> None:
        self.headers = [(n, v) for n, v in self.headers if n != name]

    def replace(self, value: bytes, content_type: bytes) -> None:
        self.value = value
        self.set("content-type", content_type)


# -- real ones ------------------------------------------------------------------------------------------------------


@cache
def _digits_by_class() -> tuple[npt.NDArray[np.int64], ...]:
    _, y = digit_images()
    return tuple(np.flatnonzero(y == label) for label in range(CLASSES))


def _npy(x: npt.NDArray[Any], version: int = 1) -> bytes:
    buffer = BytesIO()
    npy_format.write_array(buffer, x, version=(version, 0), allow_pickle=False)
    return buffer.getvalue()


def _payload(kind: InputKind, label: int, random: np.random.Generator, *, tame: bool) -> tuple[bytes, bytes]:
    """(value, content type) of a good sample of the class. `tame`: no float32, whose bits are about to be turned."""
    if kind == "image":
        x = digit_images()[0][random.choice(_digits_by_class()[label])]
        return (encode_png(x), PNG) if random.random() < 0.6 else (encode_jpeg(x), JPEG)
    if kind == "vector":
        x = random.normal(label, 0.3, _SHAPE)
        if random.random() < 0.4:
            return json.dumps({"payload": x.round(3).tolist(), "label": str(label)}).encode(), JSON
        dtypes = _TAME_DTYPES if tame else ("<f4", ">f4", "<f8", "<f2", "<i4")
        order = random.choice(["C", "F"])
        return _npy(np.asarray(x, dtype=random.choice(dtypes), order=order), int(random.integers(1, 4))), NPY
    text = " ".join(_WORDS[(label * 3 + int(word)) % len(_WORDS)] for word in random.integers(0, 5, 6))
    if random.random() < 0.4:
        return json.dumps({"payload": text, "label": label}, ensure_ascii=bool(random.random() < 0.5)).encode(), JSON
    return text.encode(), random.choice([TEXT, b"text/plain; charset=utf-8", b'Text/Plain;charset="UTF-8"'])


def _good(kind: InputKind, seed: int, number: int, *, tame: bool = False) -> Written:
    random = keyed_randomness.generator(seed, f"fuzz/{kind}/good", number)
    label = int(random.integers(CLASSES))
    value, content_type = _payload(kind, label, random, tame=tame)
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", f"{kind}-{number}".encode()),
        ("ce_source", b"fuzz"),
        ("ce_type", b"sample"),
        ("ce_time", b"2024-02-29T12:00:00.5Z"),
        ("ce_label", str(label).encode()),
        ("content-type", content_type),
    )
    return Written(value=value, headers=headers, key=b"fuzz")


# -- mutations of payloads ------------------------------------------------------------------------------------------


def _flip_bits(draft: _Draft) -> None:
    value = bytearray(draft.value or b"x")
    for _ in range(1 + draft.below(8)):
        value[draft.below(len(value))] ^= 1 << draft.below(8)
    draft.value = bytes(value)


def _truncate(draft: _Draft) -> None:
    draft.value = (draft.value or b"")[: draft.below(len(draft.value or b"") + 1)]


def _double_a_stretch(draft: _Draft) -> None:
    value = draft.value or b"x"
    start = draft.below(len(value))
    draft.value = value[: start + draft.below(64)] + value[start:]


def _splice(draft: _Draft) -> None:
    """The head of this payload and the tail of another, of any kind."""
    other, _ = _payload(draft.one_of(_KINDS), draft.below(CLASSES), draft.random, tame=True)
    value = draft.value or b""
    draft.value = value[: draft.below(len(value) + 1)] + other[draft.below(len(other)) :]


def _overwrite_a_number(draft: _Draft) -> None:
    value, extreme = draft.value or b"", draft.one_of([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\xff\xfe\0\xd8"])
    at = draft.below(len(value) + 1)
    draft.value = value[:at] + extreme + value[at + 4 :]


def _noise(draft: _Draft) -> None:
    draft.value = draft.random.bytes(draft.below(200))


def _no_value(draft: _Draft) -> None:
    draft.value = draft.one_of([None, b""])


def _other_kind(draft: _Draft) -> None:
    draft.replace(*_payload(draft.one_of(_KINDS), draft.below(CLASSES), draft.random, tame=True))


def _odd_image(draft: _Draft) -> None:
    """Sound files of other sizes and colours, and small ones that claim, or unpack to, a great deal."""
    x_HWC = draft.random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    match draft.below(7):
        case 0:
            draft.replace(encode_png(np.ascontiguousarray(x_HWC.transpose(2, 0, 1))), PNG)
        case 1:
            Image.fromarray(x_HWC).convert("P").save(buffer, format="PNG", transparency=0)
            draft.replace(buffer.getvalue(), PNG)
        case 2:
            Image.fromarray(x_HWC[..., 0].astype(np.uint16) * 257).save(buffer, format="PNG")
            draft.replace(buffer.getvalue(), PNG)
        case 3:
            Image.fromarray(x_HWC).convert("CMYK").save(buffer, format="JPEG", progressive=True)
            draft.replace(buffer.getvalue(), JPEG)
        case 4:
            width, height = draft.one_of([(65_500, 65_500), (2**31 - 1, 1), (0, 8), (4_000, 4_000), (8, 9)])
            draft.replace(_png(width, height, zlib.compress(bytes(72))), PNG)
        case 5:
            draft.replace(_png(8, 8, _million_zeros()), PNG)
        case _:
            draft.replace(_png(8, 8, zlib.compress(bytes(72)), (b"zTXt", b"bomb\0\0" + _million_zeros())), PNG)


def _png(width: int, height: int, pixels: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """Grey, 8 bits, with right checksums, whether or not the pixels fit the size."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    chunks = ((b"IHDR", size + b"\x08\0\0\0\0"), *more, (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks
    )


@cache
def _million_zeros() -> bytes:
    return zlib.compress(bytes(1_000_000), 9)


_ABSURD_SHAPES = (
    "()", "(0,)", "(-2, -4)", "(2, 4, 1)", "(8,)", "(2, True, 4)", f"({2**62}, 8)", f"({2**63}, {2**63})", "(1.0, 8)",
    f"({'9' * 4_400},)", f"({'9' * 4_000},)", f"({'1, ' * 70})", "('2', 4)", f"{'(' * 500}2{',)' * 500}", "[2, 4]",
    "2", "None", "(2, 4", "(lambda: 8)()", "(4, 2)",
)  # fmt: skip
_ABSURD_DTYPES = ("|O", "|V8", "<c8", "<U8", "<f16", "<M8[s]", "[('a', '<f4')]", "nonsense", "<f4\\n", "f8" * 200)


def _odd_npy_header(draft: _Draft) -> None:
    """Shapes and types that are absurd, in a header that numpy can read up to there."""
    shape, dtype = str(_SHAPE), "<i2"
    if draft.below(2):
        shape = draft.one_of(_ABSURD_SHAPES)
    else:
        dtype = draft.one_of(_ABSURD_DTYPES)
    fortran = draft.one_of(["False", "True", "0", "'yes'"])
    description = dtype if dtype.startswith("[") else f"'{dtype}'"
    text = f"{{'descr': {description}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    version = draft.one_of([1, 1, 2, 3, 0, 4, 255])
    length = draft.one_of([len(text)] * 4 + [0, 0xFFFF])
    head = b"\x93NUMPY" + bytes([version, 0]) + length.to_bytes(2 if version == 1 else 4, "little")
    draft.replace(head + text + bytes(16), NPY)


_ABSURD_NUMBERS = (
    "1e999", "-1e999", "NaN", "Infinity", "-0", "-0.0", "5e-324", "1e-400", "9" * 10_000, "9" * 4_300, "9" * 400,
    "true", "null", '"1"', "[]", "{}", "[1]", "1.", "+1", "0x10", "1_000", "\u0661", "1e", "-",
)  # fmt: skip


def _odd_number(draft: _Draft) -> None:
    """One value of a JSON array is none, or one that no float32 holds."""
    numbers = ["1"] * 8
    numbers[draft.below(8)] = draft.one_of(_ABSURD_NUMBERS)
    draft.replace(f'{{"payload": [[{", ".join(numbers[:4])}], [{", ".join(numbers[4:])}]]}}'.encode(), JSON)


def _odd_json(draft: _Draft) -> None:
    depth = draft.one_of([10, 900, 10_000])
    surrogate = '"\\ud800"'
    document = draft.one_of(
        [
            '{"payload": ' + "[" * depth + "1" + "]" * depth + "}",
            '{"payload": ' * depth + "1" + "}" * depth,
            '{"payload": ' + "[" * depth,
            f'{{"payload": {surrogate}, "label": "a"}}',
            '{"payload": [[1, 2, 3, 4], [1, 2, 3]]}',
            '{"payload": [[1, 2, 3, 4], 5]}',
            '{"payload": []}',
            '{"payload": [[], []]}',
            '{"payload": ""}',
            '{"payload": "\\u0000"}',
            '{"payload": 7}',
            '{"payload": "a", "payload": null}',
            '{"Payload": "a"}',
            "[]",
            '"payload"',
            "null",
            "{}",
            '{"payload": "a"} {}',
            "\ufeff" + '{"payload": "a text"}',
        ]
    )
    draft.replace(document.encode(draft.one_of(["utf-8"] * 5 + ["utf-16"])), JSON)


def _odd_label_in_json(draft: _Draft) -> None:
    """A label that stands in the payload, and is no label."""
    label = draft.one_of(
        [
            '"\\ud800"', '""', "null", "true", "1.5", "NaN", "[]", '{"a": 1}', "9" * 4_300, "9" * 10_000, "-7",
            f'"{"x" * 256}"', f'"{"x" * 257}"', f'"{"x" * 100_000}"', '"\\u0000\\n"',
        ]
    )  # fmt: skip
    draft.drop("ce_label")
    payload = draft.one_of(['"a text"', "[[1, 2, 3, 4], [1, 2, 3, 4]]"])
    draft.replace(f'{{"label": {label}, "payload": {payload}}}'.encode(), JSON)


# -- mutations of headers and keys ----------------------------------------------------------------------------------

_NOT_UTF8 = (b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\x80")


def _odd_label(draft: _Draft) -> None:
    length = draft.one_of([0, 1, 255, 256, 257, 100_000])
    draft.set(
        "ce_label", draft.one_of([b"x" * length, b"\xc3\xbc" * (length // 2), *_NOT_UTF8, b"\n\r\0", b"\xe2\x80\xa8"])
    )


def _new_class(draft: _Draft) -> None:
    draft.set("ce_label", f"class {draft.below(200)}".encode())


def _without_a_header(draft: _Draft) -> None:
    draft.drop(draft.one_of([name for name, _ in draft.headers] or [""]))


def _header_twice(draft: _Draft) -> None:
    name, value = draft.one_of(draft.headers) if draft.headers else ("", None)
    draft.headers.insert(draft.below(len(draft.headers) + 1), (name.upper() if draft.below(2) else name, value))
    if draft.below(2):
        draft.headers.append((name, draft.random.bytes(draft.below(12))))


def _header_null(draft: _Draft) -> None:
    draft.set(draft.one_of([name for name, _ in draft.headers] or [""]), draft.one_of([None, b""]))


def _header_garbage(draft: _Draft) -> None:
    name = draft.one_of(["ce_id", "ce_source", "ce_subject", "ce_label", "ce_task", "ce_time", "content-type"])
    draft.set(name, draft.one_of([draft.random.bytes(1 + draft.below(30)), *_NOT_UTF8, b"x" * 70_000, b"\0", b" "]))


def _odd_header_names(draft: _Draft) -> None:
    """Such as Kafka allows; names that are not UTF-8 come from the consumer with their bytes escaped."""
    names = [
        "",
        "\\xff",
        "ce_\\xe9",
        "x" * 10_000,
        "\0",
        "CE_LABEL",
        "palimpsest-offset",
        "palimpsest-reason",
        "İ",
        "a\nb",
    ]
    draft.headers.append((draft.one_of(names), draft.one_of([None, b"", b"-1", b"\xff", b"x" * 1_000])))


def _many_headers(draft: _Draft) -> None:
    draft.headers += [(f"h{number}", b"v") for number in range(500)]


def _no_headers(draft: _Draft) -> None:
    draft.headers = []


def _odd_content_type(draft: _Draft) -> None:
    types = [
        PNG,
        JPEG,
        NPY,
        JSON,
        TEXT,
        b"",
        b"image/jpg",
        b"IMAGE/PNG",
        b"application/x-unknown",
        b"png",
        b"a/b" * 200,
    ]
    types += [
        b"text/plain; charset=latin-1",
        b"text/plain;;;",
        b'text/plain; a="',
        b"*/*",
        b"text/plain\n",
        b";",
        b"\xff/a",
    ]
    draft.set("content-type", draft.one_of(types))


def _odd_time(draft: _Draft) -> None:
    times = [
        b"9999-12-31T23:59:59.999999999Z",
        b"9999-12-31T23:59:59-23:59",
        b"0001-01-01T00:00:00Z",
        b"",
        b"now",
        b"-1",
    ]
    times += [
        b"0001-01-01T00:00:00+23:59",
        b"2024-02-30T00:00:00Z",
        b"2024-01-01",
        b"1" * 5_000,
        b"\xff",
        b"10000-01-01T00:00:00Z",
    ]
    times += [
        b"2016-12-31T23:59:60Z",
        b"2024-W01-1T00:00:00Z",
        b"2024-01-01T24:00:00Z",
        "２０２４-01-01T00:00:00Z".encode(),
    ]
    draft.set("ce_time", draft.one_of(times))


def _same_id(draft: _Draft) -> None:
    """The id of another record, or one that many have."""
    draft.set(
        "ce_id",
        draft.one_of(
            [b"same", f"{draft.one_of(_KINDS)}-{draft.below(40_000)}".encode(), b"\xed\xa0\x80", b"i" * 100_000, b"\0"]
        ),
    )


def _subject(draft: _Draft) -> None:
    draft.set(
        "ce_subject",
        draft.one_of([f"s{draft.below(50)}".encode(), b"", b"\xff", b"s" * 10_000, b"\0", b"\xf0\x9f\x98\x80"]),
    )


def _odd_key(draft: _Draft) -> None:
    draft.key = draft.one_of([None, b"", b"\xff" * 1_000, b"k" * 100_000, draft.random.bytes(8)])


Mutation = Callable[[_Draft], None]
_OF_PAYLOADS: tuple[Mutation, ...] = (
    _flip_bits, _flip_bits, _truncate, _double_a_stretch, _splice, _overwrite_a_number, _noise, _no_value, _other_kind,
    _odd_image, _odd_npy_header, _odd_number, _odd_json, _odd_label_in_json,
)  # fmt: skip
_OF_HEADERS: tuple[Mutation, ...] = (
    _odd_label, _new_class, _without_a_header, _header_twice, _header_null, _header_garbage, _odd_header_names,
    _many_headers, _no_headers, _odd_content_type, _odd_time, _same_id, _subject, _odd_key,
)  # fmt: skip
_KINDS: tuple[InputKind, ...] = ("image", "vector", "text")


# -- streams --------------------------------------------------------------------------------------------------------


def fuzzed(kind: InputKind, *, seed: int, start: int = 0, stop: int) -> Iterator[Written]:
    """Records `start` to `stop` of the stream whose samples are of this kind.

    40 of 100 are good and 5 repeats of one of the last 300; the others have one to three faults, or none that shows.
    """
    for number in range(start, stop):
        yield _record(kind, seed, number)


def _record(kind: InputKind, seed: int, number: int) -> Written:
    random = keyed_randomness.generator(seed, f"fuzz/{kind}", number)
    if number < GOOD_AT_FIRST:
        return _good(kind, seed, number)
    if kind == "vector" and number % POISON_EVERY == 0:
        return _poisoned(seed, number, random)
    share = random.random()
    if share < 0.4:
        return _good(kind, seed, number)
    if share < 0.45:
        earlier = number - 1 - int(random.integers(min(number, REPEATS_REACH)))
        first = _record(kind, seed, earlier)
        if first.fate != "good":
            return first  # two that are bad in the same way, or a repeat of a repeat
        return Written(value=first.value, headers=first.headers, key=first.key, fate="repeat")
    return _spoilt(kind, seed, number, random)


def _spoilt(kind: InputKind, seed: int, number: int, random: np.random.Generator) -> Written:
    whole = _good(kind, seed, number, tame=True)
    draft = _Draft(random, whole.value, list(whole.headers), whole.key)
    for _ in range(1 + min(draft.below(4), draft.below(4))):
        draft.one_of(draft.one_of([_OF_PAYLOADS, _OF_HEADERS]))(draft)
    return Written(
        value=draft.value,
        headers=tuple(draft.headers),
        key=draft.key,
        fate="any" if draft.value else "bad",
    )


def _poisoned(seed: int, number: int, random: np.random.Generator) -> Written:
    """Proper float32 numbers that no update can bear, or none that anybody notices."""
    whole = dict(_good("vector", seed, number).headers) | {"content-type": JSON}
    x = np.sign(random.normal(0, 1, _SHAPE)) * random.choice([3e38, 1e38, 1e30, 1e20, 1e10, 1e6])
    return Written(
        value=json.dumps({"payload": x.tolist()}).encode(), headers=tuple(whole.items()), key=b"fuzz", fate="any"
    )
