"""A bounded, uniform memory of an endless stream, beside what the network said when each sample was stored.

Legend: N = capacity, B = rows handed in, K = logit columns now, S = logit columns when a row was stored
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import keyed_randomness
from pipeline.device import to_device
from pipeline.sample import InputSpec
from pipeline.state import StateTree
from pipeline.user_error import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservoirRows:
    """Rows of the reservoir, copied, on its device."""

    x: Tensor  # (rows, ...) in the dtype of the input spec, un-augmented
    y_B: Tensor  # int64 logit columns
    logits_BK: Tensor  # float32; zero from column S on
    columns_B: Tensor  # int64: S of each row


class Reservoir:
    """Reservoir sampling: after t samples each of them is in it with probability N / t, without knowing the end.

    Algorithm R (Vitter 1985, "Random sampling with a reservoir", doi:10.1145/3147.3165): sample t (from 0) takes slot t
    while t < N, else slot j drawn uniformly from 0..t, if j < N.

    Draws of a batch are keyed by (seed, samples seen before it), so nothing about them has to be saved.
    """

    def __init__(self, capacity: int, spec: InputSpec, seed: int, device: torch.device) -> None:
        self.capacity = capacity
        self.spec = spec
        self.seen = 0  # samples offered so far
        self._seed = seed
        self._device = device
        dtype = getattr(torch, spec.dtype)
        self._x = torch.zeros((capacity, *spec.shape), dtype=dtype, device=device)
        self._y_N = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._logits_NK = torch.zeros((capacity, 0), dtype=torch.float32, device=device)
        self._columns_N = torch.zeros(capacity, dtype=torch.int64, device=device)

    @property
    def filled(self) -> int:
        """Slots in use: the first `filled` ones."""
        return min(self.seen, self.capacity)

    def slots(self, rows: int) -> npt.NDArray[np.int64]:
        """Where Algorithm R would put each of the next `rows` samples; values >= N mean nowhere."""
        seen = self.seen
        positions_B = np.arange(seen, seen + rows, dtype=np.int64)
        if seen + rows <= self.capacity:
            return positions_B
        drawn_B = keyed_randomness.generator(self._seed, "reservoir", seen).integers(0, positions_B + 1)
        return np.where(positions_B < self.capacity, positions_B, drawn_B)

    def insert(self, x: Tensor, y_B: Tensor, logits_BK: Tensor, columns: int) -> None:
        """Offer a batch whose logits have so many columns. Of two rows for one slot the later one stays."""
        assert logits_BK.shape == (len(x), columns), f"{tuple(logits_BK.shape)} for {len(x)} rows of {columns} columns"
        slots_B = self.slots(len(x))
        self.seen += len(x)
        chosen_B = slots_B < self.capacity
        if not chosen_B.any():  # the usual case in a long stream
            return
        # last write wins: writing one slot twice in one operation has no defined order on a GPU
        slots, last = np.unique(slots_B[::-1], return_index=True)
        kept = slots < self.capacity
        places = np.stack([slots[kept], len(x) - 1 - last[kept]])
        slot_index, row_index = to_device(places, self._device)
        self.grow(columns)
        self._x.index_copy_(0, slot_index, x.index_select(0, row_index))
        self._y_N.index_copy_(0, slot_index, y_B.index_select(0, row_index))
        self._logits_NK.index_copy_(0, slot_index, logits_BK.index_select(0, row_index).float())
        self._columns_N.index_fill_(0, slot_index, columns)

    def draw(self, size: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """min(size, filled) slots without replacement, drawn on the CPU in time proportional to size (Floyd)."""
        filled = self.filled
        return generator.choice(filled, min(size, filled), replace=False, shuffle=False)

    def rows(self, indices: Tensor) -> ReservoirRows:
        """The rows in these slots (an int64 tensor on the reservoir's device)."""
        return ReservoirRows(
            x=self._x.index_select(0, indices),
            y_B=self._y_N.index_select(0, indices),
            logits_BK=self._logits_NK.index_select(0, indices),
            columns_B=self._columns_N.index_select(0, indices),
        )

    def grow(self, columns: int) -> None:
        """Make room for logits of so many columns; those of rows stored before stay zero there."""
        missing = columns - self._logits_NK.shape[1]
        if missing > 0:
            self._logits_NK = torch.nn.functional.pad(self._logits_NK, (0, missing))

    def counts_per_column(self) -> npt.NDArray[np.int64]:
        """Samples held per logit column. Waits for the device: not for the hot loop."""
        counts = torch.bincount(self._y_N[: self.filled].cpu(), minlength=self._logits_NK.shape[1])
        return cast("npt.NDArray[np.int64]", counts.numpy())

    def state(self) -> StateTree:
        """Only slots in use. References to live tensors: the learner copies."""
        filled = self.filled
        return {
            "seen": self.seen,
            "x": self._x[:filled],
            "y": self._y_N[:filled],
            "logits": self._logits_NK[:filled],
            "columns": self._columns_N[:filled],
        }

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`; UserError where it was saved with another capacity."""
        seen = cast(int, state["seen"])
        x, logits = cast(Tensor, state["x"]), cast(Tensor, state["logits"])
        if len(x) != min(seen, self.capacity):
            raise UserError(
                f"the state's reservoir holds {len(x)} of {seen} samples seen, which does not fit replay.capacity "
                f"{self.capacity}: use the capacity it was saved with"
            )
        self.seen = seen
        filled = self.filled
        self._logits_NK = torch.zeros((self.capacity, logits.shape[1]), dtype=torch.float32, device=self._device)
        self._x[:filled] = x.to(self._device)
        self._y_N[:filled] = cast(Tensor, state["y"]).to(self._device)
        self._logits_NK[:filled] = logits.to(self._device)
        self._columns_N[:filled] = cast(Tensor, state["columns"]).to(self._device)
