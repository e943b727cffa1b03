"""The contract of a data set that can be sent as a stream: payloads in the bytes that travel, and one class each.

Legend: N = items
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.user_error import UserError


class LabelledDataset(ABC):
    """Items with a class each. Payloads are made when asked for, so a large data set need not fit in memory."""

    name: str  # stands in ce_id and ce_source
    classes: tuple[str, ...]  # in the order in which a schedule takes them; each has at least one item
    labels: npt.NDArray[np.int64]  # (N,) indices into `classes`
    steps: npt.NDArray[np.int64] | None = None  # (N,) where the data set itself says what comes when (Avalanche)
    opened_as: str = ""  # the options that its payloads depend on; `open_dataset` notes them
    can_turn: bool = False  # True: images, so that `turn_degrees` means something

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def payload(self, i: int) -> tuple[bytes, str]:
        """Item `i` as it is, and its content type."""

    @abstractmethod
    def augmented_payload(
        self, i: int, generator: np.random.Generator | None, turn_degrees: float = 0.0
    ) -> tuple[bytes, str]:
        """Item `i` changed slightly by draws from `generator` (None: no such change), of the same class beyond doubt.

        Images are also turned by `turn_degrees` counter-clockwise; others are only asked with 0.
        """

    def subject(self, i: int) -> str:
        """What a record of item `i` is about, however it was changed: the original."""
        return f"{self.name}/{i}"


def classes_and_labels(names: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """(classes, labels) of each item's class name: whole numbers by value, anything else by the alphabet."""
    classes = tuple(in_order(set(names)))
    index = {name: number for number, name in enumerate(classes)}
    return classes, np.array([index[name] for name in names], dtype=np.int64)


def in_order(names: Iterable[str]) -> list[str]:
    """Whole numbers by value ("2" before "10"), anything else by the alphabet."""
    listed = sorted(names)
    if all(name.isascii() and name.lstrip("-").isdecimal() for name in listed):
        listed.sort(key=int)
    return listed


def without_empty_classes(
    classes: Sequence[str], labels: npt.NDArray[np.int64]
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """The same without the classes that no item has (EMNIST's letters name one that does not exist)."""
    present, compact = np.unique(labels, return_inverse=True)
    return tuple(classes[int(k)] for k in present), compact.astype(np.int64)


def check_not_empty(dataset: LabelledDataset, spec: str) -> None:
    """Raise `UserError` where there is nothing to send."""
    if len(dataset) == 0:
        raise UserError(f"data set {spec!r} holds no item; name one that does")
