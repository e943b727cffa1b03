"""Arrays of numbers in memory as a data set.

Legend: N items
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.npy import encode_npy
from producers.labelled_dataset import LabelledDataset, classes_and_labels

NOISE = 0.05  # standard deviation of a change, in standard deviations of the value over the data set


class ArrayDataset(LabelledDataset):
    """`x[i]` is sent in its own dtype. A change adds normal noise; whole numbers stay whole and in their range."""

    def __init__(self, *, name: str, original: str, x: npt.NDArray[Any], labels: Sequence[str]) -> None:
        self.name = name
        self.classes, self.labels = classes_and_labels(labels)
        self._original = original
        self._x = x

    def payload(self, i: int) -> tuple[bytes, str]:
        return encode_npy(np.asarray(self._x[i])), "application/x-npy"

    def augmented_payload(
        self, i: int, generator: np.random.Generator | None, turn_degrees: float = 0.0
    ) -> tuple[bytes, str]:
        assert turn_degrees == 0.0, "an array cannot be turned"
        x = np.asarray(self._x[i])
        if generator is None or x.dtype.kind == "b":
            return self.payload(i)
        changed = x + NOISE * self._deviation * generator.standard_normal(x.shape)
        if x.dtype.kind in "iu":
            changed = np.clip(np.rint(changed), *self._range)
        return encode_npy(changed.astype(x.dtype)), "application/x-npy"

    def subject(self, i: int) -> str:
        return f"{self._original}/{i}"

    @cached_property
    def _deviation(self) -> npt.NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # infinite values are sent as they are: it is the learner that refuses them
            return np.asarray(self._x.std(axis=0, dtype=np.float64))

    @cached_property
    def _range(self) -> tuple[int, int]:
        return int(self._x.min()), int(self._x.max())
