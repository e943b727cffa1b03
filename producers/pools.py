"""What a schedule draws from: the items of each class, and which classes come together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline import keyed_randomness
from pipeline.user_error import UserError
from producers.labelled_dataset import LabelledDataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """A pool is a class; or, where the data set itself has steps, a class within one of them.

    Every pool is in exactly one of `steps`, and has at least one item.
    """

    names: tuple[str, ...]  # of the pools' classes
    sizes: tuple[int, ...]  # items in each
    steps: tuple[tuple[int, ...], ...]  # pools that come together, in order

    @property
    def in_order(self) -> tuple[int, ...]:
        """All pools, in the order in which they come for the first time."""
        return tuple(pool for step in self.steps for pool in step)


def pools_of(
    dataset: LabelledDataset, *, classes_per_step: int = 2, shuffle_classes: bool = False, seed: int = 0
) -> tuple[Pools, tuple[npt.NDArray[np.int64], ...]]:
    """(pools, the items of each). The classes in the data set's order, or shuffled by the seed; the last step may be
    smaller. Steps of the data set itself stay as they are."""
    if classes_per_step < 1:
        raise UserError(f"a step has at least one class; got --classes-per-step {classes_per_step}")
    if dataset.steps is None:
        order = np.arange(len(dataset.classes))
        if shuffle_classes:
            order = keyed_randomness.generator(seed, "classes").permutation(order)
        items = tuple(np.flatnonzero(dataset.labels == label) for label in range(len(dataset.classes)))
        names = dataset.classes
        steps = tuple(
            tuple(int(label) for label in order[start : start + classes_per_step])
            for start in range(0, len(order), classes_per_step)
        )
    else:
        if shuffle_classes:
            raise UserError(f"{dataset.name} has an order of its own; leave --shuffle-classes out")
        keys = sorted(set(zip(dataset.steps.tolist(), dataset.labels.tolist(), strict=True)))
        items = tuple(np.flatnonzero((dataset.steps == step) & (dataset.labels == label)) for step, label in keys)
        names = tuple(dataset.classes[label] for _, label in keys)
        steps = tuple(
            tuple(pool for pool, (of_pool, _) in enumerate(keys) if of_pool == step)
            for step in sorted({step for step, _ in keys})
        )
    return Pools(names=names, sizes=tuple(len(pool) for pool in items), steps=steps), items


def apportioned(total: int, weights: Sequence[float]) -> list[int]:
    """`total` records over pools by their weights (largest remainders); where there are enough, at least one each."""
    weights_P = np.asarray(weights, dtype=np.float64)
    exact_P = total * weights_P / weights_P.sum()
    counts_P = np.floor(exact_P).astype(np.int64)
    by_remainder = np.argsort(-(exact_P - counts_P), kind="stable")
    counts_P[by_remainder[: total - int(counts_P.sum())]] += 1
    if total >= len(counts_P):
        for empty in np.flatnonzero(counts_P == 0):
            counts_P[empty] += 1
            counts_P[np.argmax(counts_P)] -= 1
    return [int(count) for count in counts_P]
