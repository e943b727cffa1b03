"""Class-balanced reservoir sampling: every class as many samples as the others, however rare it is in the stream.

    while the memory has room                        store
    else, class c of the sample was never largest    overwrite a random sample of the largest class
    else, with probability m_c / n_c                 overwrite a random sample of class c
    else                                             leave it

m_c samples of the class are held now, n_c of it came so far, this one included. A class that is, or once was, the
largest while the memory was full counts as full for ever: among its own samples this is Algorithm R, so that they are
uniform over all of the class that came. Chrysakis and Moens 2020, "Online Continual Learning from Imbalanced Data",
ICML, algorithm 1.

Where we differ:
- Of several largest classes one is drawn, each as likely (the paper does not say).
- A full class of which nothing is held any more counts as if it had never been full: its samples would never come back
  (more classes than slots).
- Where erasures left room, the next samples fill it, whatever their class, and no class counts as full until the memory
  is: those that lost samples catch up. From then on a class is no longer uniform over all of it that came.

Legend: N = capacity, B = rows of a batch, K = classes that came so far
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.sampling.sampling import Sampling, Slots
from pipeline.state import StateTree


class ClassBalanced(Sampling):
    """Per-class counts of what came, and which classes were ever full."""

    name: ClassVar[str] = "class_balanced"

    def __init__(self, capacity: int, seed: int) -> None:
        super().__init__(capacity, seed)
        self._came_K = np.zeros(0, dtype=np.int64)  # n_c
        self._full_K = np.zeros(0, dtype=np.bool_)

    def slots(self, column_B: Slots, column_N: Slots, *, seen: int, filled: int) -> Slots:
        """As if one by one: a sample of this batch may overwrite another one of it."""
        self._know(int(column_B.max(initial=-1)) + 1)
        # Of each row three draws, whether it needs them or not: which of the largest classes, whether, and where.
        drawn_B3 = self.keyed_generator("reservoir", seen).random((len(column_B), 3))
        held_N = column_N.copy()
        held_K = np.bincount(held_N[:filled], minlength=len(self._came_K))
        slots_B = np.full(len(column_B), self.capacity, dtype=np.int64)
        for row, column in enumerate(column_B):
            self._came_K[column] += 1
            of_largest, whether, where = drawn_B3[row]
            if filled < self.capacity:
                slots_B[row] = filled
                filled += 1
                self._full_K[:] = False
            else:
                largest_K = held_K == held_K.max()
                self._full_K |= largest_K
                if not self._full_K[column] or not held_K[column]:
                    slots_B[row] = _one_of(held_N, _pick(np.flatnonzero(largest_K), of_largest), where)
                elif whether < held_K[column] / self._came_K[column]:
                    slots_B[row] = _one_of(held_N, column, where)
                else:
                    continue
                held_K[held_N[slots_B[row]]] -= 1
            held_N[slots_B[row]] = column
            held_K[column] += 1
        return slots_B

    def _know(self, classes: int) -> None:
        missing = classes - len(self._came_K)
        if missing > 0:
            self._came_K = np.pad(self._came_K, (0, missing))
            self._full_K = np.pad(self._full_K, (0, missing))

    def state(self) -> StateTree:
        return {"came": torch.from_numpy(self._came_K.copy()), "was_full": torch.from_numpy(self._full_K.copy())}

    def load_state(self, state: StateTree) -> None:
        self._came_K = cast(Tensor, state["came"]).cpu().numpy().copy()
        self._full_K = cast(Tensor, state["was_full"]).cpu().numpy().copy()


def _one_of(held_N: Slots, column: int | np.int64, draw: float) -> np.int64:
    """A slot of this class."""
    return _pick(np.flatnonzero(held_N == column), draw)


def _pick(choices: Slots, draw: float) -> np.int64:
    """One of them, by a draw from [0, 1)."""
    chosen: np.int64 = choices[int(draw * len(choices))]
    return chosen
