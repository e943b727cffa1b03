"""Rows that a job reads from a log, as many as it may keep.

Of more unlabelled rows each is kept with the same probability: algorithm R (Vitter 1985, doi:10.1145/3147.3165). Of
more labelled ones those of the commonest class make room, so that none is lost while there is a place for each:
class-balanced reservoir sampling (`pipeline/sampling/class_balanced.py`). Draws are keyed by the row's number, so that
the same log gives the same rows.

Legend: N = rows
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline import keyed_randomness
from pipeline.sampling.class_balanced import ClassBalanced

_Row = TypeVar("_Row")
_LabelledRow = tuple[npt.NDArray[np.generic], str]
_CHUNK_ROWS = 1_000  # given to the sampling at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRows:
    """In memory."""

    x: npt.NDArray[np.generic]  # (N, ...) in the dtype of the input spec
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.labels), f"{len(self.x)} rows with {len(self.labels)} labels"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> LabelledRows:
        return LabelledRows(x=self.x[rows], labels=self.labels[rows])

    def of(self, labels: Collection[str]) -> LabelledRows:
        """The rows with one of these labels."""
        kept = [row for row, label in enumerate(self.labels) if label in labels]
        return LabelledRows(x=self.x[kept], labels=tuple(self.labels[row] for row in kept))


def balanced(rows: LabelledRows) -> LabelledRows:
    """Rows of the rarer classes again and again, so that each class has as many."""
    labels = np.array(rows.labels)
    names, counts = np.unique(labels, return_counts=True)
    chosen = np.concatenate([np.resize(np.flatnonzero(labels == name), counts.max()) for name in names])
    return LabelledRows(x=rows.x[chosen], labels=tuple(rows.labels[row] for row in chosen))


def gather_labelled(records: Iterable[tuple[npt.NDArray[np.generic], str]], most: int, seed: int) -> LabelledRows:
    """Single samples (...) with their labels, read once."""
    kept = _balanced_at_most(records, most, seed)
    x = np.stack([x for x, _ in kept]) if kept else np.empty((0,), np.float32)
    return LabelledRows(x=x, labels=tuple(label for _, label in kept))


def gather_new(
    records: Iterable[tuple[npt.NDArray[np.generic], str]] | None,
    reservoir: LabelledRows,
    new_classes: Collection[str],
    most: int,
    seed: int,
) -> LabelledRows:
    """The new classes' rows: single samples of the log, read once, or where it has them no more (None) the
    reservoir's."""
    if records is None:
        return reservoir.of(new_classes)
    return gather_labelled(((x, label) for x, label in records if label in new_classes), most, seed)


def gather_unlabelled(records: Iterable[npt.NDArray[np.generic]], most: int, seed: int) -> npt.NDArray[np.generic]:
    """Single samples (...) -> (N, ...), read once."""
    kept = _at_most(records, most, seed, "restructuring/unlabelled")
    return np.stack(kept) if kept else np.empty((0,), np.float32)


def _at_most(rows: Iterable[_Row], most: int, seed: int, purpose: str) -> list[_Row]:
    keyed = keyed_randomness.KeyedGenerator(seed)
    kept: list[_Row] = []
    for number, row in enumerate(rows):
        if number < most:
            kept.append(row)
            continue
        place = int(keyed(purpose, number).integers(0, number + 1))
        if place < most:
            kept[place] = row
    return kept


def _balanced_at_most(rows: Iterable[_LabelledRow], most: int, seed: int) -> list[_LabelledRow]:
    sampling = ClassBalanced(most, seed)
    columns: dict[str, int] = {}
    column_N = np.zeros(most, dtype=np.int64)
    kept: list[_LabelledRow] = []
    remaining, seen = iter(rows), 0
    while chunk := list(itertools.islice(remaining, _CHUNK_ROWS)):
        column_B = np.array([columns.setdefault(label, len(columns)) for _, label in chunk], dtype=np.int64)
        slots_B = sampling.slots(column_B, column_N, seen=seen, filled=len(kept))
        seen += len(chunk)
        for row, column, slot in zip(chunk, column_B, slots_B.tolist(), strict=True):
            if slot == most:
                continue
            kept[slot : slot + 1] = [row]  # one more where the slot is the next one
            column_N[slot] = column
    return kept
