"""Twenty classes of real digits, as they are and as negatives ("-3"), in ten steps of two; the rest has no labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline import keyed_randomness
from pipeline.record import Record
from pipeline.sample import Decoded, Sample

CLASSES = tuple(f"{sign}{digit}" for sign in ("", "-") for digit in range(10))
_IN_STREAM = 100  # of each class
_TO_JUDGE = 30  # of each class; the rest, some 50, have no labels


@dataclass(frozen=True, kw_only=True)
class TwentyDigits:
    records: tuple[Decoded, ...]
    unlabelled: Mapping[str, npt.NDArray[np.generic]]  # {what nobody is told: (N, 1, 8, 8)}
    test_x: npt.NDArray[np.generic]
    test_labels: tuple[str, ...]


@cache
def twenty_digits() -> TwentyDigits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    shuffled = keyed_randomness.generator(0, "twenty digits").permutation(len(images))
    images, digits = images[shuffled], bunch.target[shuffled]
    of_class = {
        name: (255 - images if name[0] == "-" else images)[digits == int(name.removeprefix("-"))] for name in CLASSES
    }
    records: list[Decoded] = []
    for first in range(0, len(CLASSES), 2):
        for row in range(_IN_STREAM):
            for name in CLASSES[first : first + 2]:
                sample = Sample(x=of_class[name][row], kind="image", label=name, source="digits", id=f"{name}/{row}")
                records.append(Decoded(Record("digits.samples", 0, len(records), b""), sample))
    judged = slice(_IN_STREAM, _IN_STREAM + _TO_JUDGE)
    test = {name: rows[judged] for name, rows in of_class.items()}
    return TwentyDigits(
        records=tuple(records),
        unlabelled={name: rows[judged.stop :] for name, rows in of_class.items()},
        test_x=np.concatenate(list(test.values())),
        test_labels=tuple(name for name, rows in test.items() for _ in rows),
    )
