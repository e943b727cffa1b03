"""Rows that a job reads from a log, as many as it may keep.

Of more unlabelled rows each is kept with the same probability: algorithm R (Vitter 1985, doi:10.1145/3147.3165). Of
more labelled ones those of the commonest class make room, so that none is lost while there is a place for each:
class-balancing reservoir sampling (Chrysakis & Moens 2020, "Online Continual Learning from Imbalanced Data", ICML,
algorithm 1). Draws are keyed by the row's number, so that the same log gives the same rows.

Legend: N = rows
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline import keyed_randomness

_Row = TypeVar("_Row")


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
    kept = _balanced_at_most(records, most, seed, "restructuring/records")
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


def _balanced_at_most(
    rows: Iterable[tuple[npt.NDArray[np.generic], str]], most: int, seed: int, purpose: str
) -> list[tuple[npt.NDArray[np.generic], str]]:
    """A class is full once it was the largest when room was wanted: of such a one each row is kept with the same
    probability."""
    keyed = keyed_randomness.KeyedGenerator(seed)
    kept: list[tuple[npt.NDArray[np.generic], str]] = []
    places: defaultdict[str, list[int]] = defaultdict(list)  # of each class, in `kept`
    came: Counter[str] = Counter()
    full: set[str] = set()
    for number, row in enumerate(rows):
        label = row[1]
        came[label] += 1
        if number < most:
            places[label].append(number)
            kept.append(row)
            continue
        size = {name: len(its) for name, its in places.items()}
        largest = max(size, key=lambda name: (size[name], name == label))
        full.add(largest)
        if label in full:
            draw = int(keyed(purpose, number).integers(0, came[label]))
            if draw < len(places[label]):
                kept[places[label][draw]] = row
            continue
        place = places[largest].pop(int(keyed(purpose, number).integers(0, len(places[largest]))))
        places[label].append(place)
        kept[place] = row
    return kept
