"""A bounded memory of an endless stream, beside what the network said when each sample was stored.

Legend: N = capacity, B = rows handed in, K = logit columns now, S = logit columns when a row was stored
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.device import to_device
from pipeline.sample import InputSpec
from pipeline.sampling import samplings
from pipeline.sampling.uniform import Uniform
from pipeline.state import StateTree
from pipeline.user_error import UserError

# Whose a row is that was stored by a release which did not note it.
UNKNOWN_SUBJECT = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservoirRows:
    """Rows of the reservoir, copied, on its device."""

    x: Tensor  # (rows, ...) in the dtype of the input spec, un-augmented
    y_B: Tensor  # int64 logit columns
    logits_BK: Tensor  # float32; zero from column S on
    columns_B: Tensor | None  # int64: S of each row; None: all of them have all K


class Reservoir:
    """Rows on the learner's device. What is kept is chosen by a sampling (`pipeline/sampling/`), on the CPU.

    Erased subjects' rows leave holes: the others are moved together, and the first `filled` slots are in use.
    """

    def __init__(self, capacity: int, spec: InputSpec, seed: int, device: torch.device, sampling: str) -> None:
        """`sampling`: the name of a file in `pipeline/sampling/`."""
        self.capacity = capacity
        self.spec = spec
        self.seen = 0  # samples offered so far
        self.filled = 0  # slots in use: the first ones
        self._sampling = samplings()[sampling](capacity, seed)
        self._device = device
        dtype = getattr(torch, spec.dtype)
        self._x = torch.zeros((capacity, *spec.shape), dtype=dtype, device=device)
        self._y_N = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._logits_NK = torch.zeros((capacity, 0), dtype=torch.float32, device=device)
        self._columns_N = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._subjects_N = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._held_N = np.zeros(capacity, dtype=np.int64)  # y_N on the CPU, so that a sampling waits for no device
        self._narrow_N = np.zeros(capacity, dtype=np.bool_)  # stored with fewer columns than there are now

    def insert(
        self,
        x: Tensor,
        y_B: npt.NDArray[np.int64],
        logits_BK: Tensor,
        columns: int,
        subjects_B: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Offer a batch whose logits have so many columns. Of two rows for one slot the later one stays.

        `y_B`: the rows' own logit columns. `subjects_B` says whom each row is about (`HoldOut.key`), for its erasure;
        None: not known.
        """
        assert logits_BK.shape == (len(x), columns), f"{tuple(logits_BK.shape)} for {len(x)} rows of {columns} columns"
        if subjects_B is None:
            subjects_B = np.full(len(x), UNKNOWN_SUBJECT, np.int64)
        assert subjects_B.shape == (len(x),), f"{subjects_B.shape} subjects for {len(x)} rows"
        slots_B = self._sampling.slots(y_B, self._held_N, seen=self.seen, filled=self.filled)
        self.seen += len(x)
        chosen_B = slots_B < self.capacity
        if not chosen_B.any():  # the usual case in a long stream
            return
        # last write wins: writing one slot twice in one operation has no defined order on a GPU
        slots, last = np.unique(slots_B[::-1], return_index=True)
        kept = slots < self.capacity
        chosen = len(x) - 1 - last[kept]
        places = np.stack([slots[kept], chosen, y_B[chosen], subjects_B[chosen]])
        slot_index, row_index, y, subjects = to_device(places, self._device)
        self.grow(columns)
        self._held_N[slots[kept]] = y_B[chosen]
        self._narrow_N[slots[kept]] = columns < self._logits_NK.shape[1]
        self.filled = max(self.filled, int(slots[kept][-1]) + 1)
        self._x.index_copy_(0, slot_index, x.index_select(0, row_index))
        self._y_N.index_copy_(0, slot_index, y)
        self._logits_NK.index_copy_(0, slot_index, logits_BK.index_select(0, row_index).float())
        self._columns_N.index_fill_(0, slot_index, columns)
        self._subjects_N.index_copy_(0, slot_index, subjects)

    def draw(self, size: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """min(size, filled) slots without replacement, drawn on the CPU in time proportional to size (Floyd)."""
        filled = self.filled
        return generator.choice(filled, min(size, filled), replace=False, shuffle=False)

    @property
    def has_narrow_rows(self) -> bool:
        """Whether any row was stored with fewer columns than there are now."""
        return bool(self._narrow_N[: self.filled].any())

    def rows(self, slots: Tensor, *, x_of: Tensor | None = None) -> ReservoirRows:
        """The rows in these slots (int64, on the reservoir's device). `x_of`: x of these slots instead."""
        return ReservoirRows(
            x=self._x.index_select(0, slots if x_of is None else x_of),
            y_B=self._y_N.index_select(0, slots),
            logits_BK=self._logits_NK.index_select(0, slots),
            columns_B=self._columns_N.index_select(0, slots) if self.has_narrow_rows else None,
        )

    def grow(self, columns: int) -> None:
        """Make room for logits of so many columns; those of rows stored before stay zero there."""
        missing = columns - self._logits_NK.shape[1]
        if missing > 0:
            self._narrow_N[: self.filled] = True
            self._logits_NK = torch.nn.functional.pad(self._logits_NK, (0, missing))

    def counts_per_column(self) -> npt.NDArray[np.int64]:
        """Samples held per logit column."""
        return np.bincount(self._held_N[: self.filled], minlength=self._logits_NK.shape[1])

    def state(self) -> StateTree:
        """Only slots in use. References to live tensors: the learner copies.

        `holes` are the slots that erasures emptied and that no sample has filled since.
        """
        filled = self.filled
        return {
            "seen": self.seen,
            "holes": min(self.seen, self.capacity) - filled,
            "sampling": self._sampling.name,
            "sampled": self._sampling.state(),
            "x": self._x[:filled],
            "y": self._y_N[:filled],
            "logits": self._logits_NK[:filled],
            "columns": self._columns_N[:filled],
            "subjects": self._subjects_N[:filled],
        }

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`; UserError where it was saved with another capacity or sampling.

        Releases before there were erasures saved no `holes` (there were none) and no `subjects`; those before there was
        a choice of samplings were uniform.
        """
        sampling = state.get("sampling", Uniform.name)
        if sampling != self._sampling.name:
            raise UserError(
                f"the state's reservoir was sampled {sampling!r}, replay.sampling is {self._sampling.name!r}: use the "
                "one it was saved with"
            )
        seen = cast(int, state["seen"])
        x, logits = cast(Tensor, state["x"]), cast(Tensor, state["logits"])
        filled = len(x)
        if filled + cast(int, state.get("holes", 0)) != min(seen, self.capacity):
            raise UserError(
                f"the state's reservoir holds {filled} of {seen} samples seen, which does not fit replay.capacity "
                f"{self.capacity}: use the capacity it was saved with"
            )
        self.seen, self.filled = seen, filled
        self._logits_NK = torch.zeros((self.capacity, logits.shape[1]), dtype=torch.float32, device=self._device)
        self._x[:filled] = x.to(self._device)
        y = cast(Tensor, state["y"])
        self._y_N[:filled] = y.to(self._device)
        self._held_N[:filled] = y.cpu().numpy()
        self._sampling.load_state(cast(StateTree, state.get("sampled", {})))
        self._logits_NK[:filled] = logits.to(self._device)
        stored_columns = cast(Tensor, state["columns"])
        self._columns_N[:filled] = stored_columns.to(self._device)
        self._narrow_N[:filled] = stored_columns.cpu().numpy() < logits.shape[1]
        subjects = cast("Tensor | None", state.get("subjects"))
        self._subjects_N[:filled] = UNKNOWN_SUBJECT if subjects is None else subjects.to(self._device)


def subjects_of(state: StateTree) -> Tensor:
    """Whom each row of a reservoir's state is about: int64 (rows,); `UNKNOWN_SUBJECT` where that was not noted."""
    subjects = cast("Tensor | None", state.get("subjects"))
    return torch.full_like(cast(Tensor, state["y"]), UNKNOWN_SUBJECT) if subjects is None else subjects


def without_rows(state: StateTree, removed_N: Tensor) -> StateTree:
    """A reservoir's state without the rows that are marked (bool): the others move together, in their order."""
    kept = torch.nonzero(~removed_N).flatten()
    rows = {name: cast(Tensor, state[name]) for name in ("x", "y", "logits", "columns")}
    rows["subjects"] = subjects_of(state)
    return {
        **state,
        **{name: tensor.index_select(0, kept) for name, tensor in rows.items()},
        "holes": cast(int, state.get("holes", 0)) + len(removed_N) - len(kept),
    }
