"""Records that no update can bear are found and set aside; weights that have diverged are not blamed on records.

A value of 1e38 is a proper float32, and an update with it is not: the loss is infinite, or the gradient. One such
record must not end the stream. But where the weights have diverged every record looks like one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from pipeline.settings import OptimizerSettings
from pipeline.state import StateTree

_WINDOW_RECORDS = 100
_MOST_CULPRITS = 5  # among the newest `_WINDOW_RECORDS`


class WeightsDiverged(RuntimeError):
    """Nothing more can be learnt with these weights. One line: what happened, and the way out."""


def weights_diverged(what_happened: str, settings: OptimizerSettings) -> WeightsDiverged:
    """The error with the way out, which is in the settings or at the producer."""
    clipped = "none" if settings.max_gradient_norm is None else settings.max_gradient_norm
    return WeightsDiverged(
        f"{what_happened}: lower learner.optimizer.learning_rate (now {settings.learning_rate:g}), set or lower "
        f"learner.optimizer.max_gradient_norm (now {clipped}), or look at the values that the producer sends"
    )


def find_culprits(rows: Sequence[int], what: str, fault: Callable[[Sequence[int]], str | None]) -> dict[int, str]:
    """{row: one line that says why}, at least one, of rows whose update is not finite (`what` of it is not).

    `fault` says what of an update on some of the rows is not finite, None where all of it is. Both halves are judged,
    each apart, down to single rows. Where each half can be learnt and only both together cannot, rows are taken out
    one after the other as long as the rest still cannot: those that remain need each other, and all are culprits.

    Rows may stand that only together with others cannot be learnt: ask again for what is left.
    """
    alone = f"{what} of an update with it is not finite"
    if len(rows) == 1:
        return {rows[0]: alone}
    middle = len(rows) // 2
    culprits: dict[int, str] = {}
    for half in (rows[:middle], rows[middle:]):
        what_of_half = fault(half)
        if what_of_half is not None:
            culprits |= find_culprits(half, what_of_half, fault)
    if culprits:
        return culprits
    needed = list(rows)
    for row in rows:
        without = [other for other in needed if other != row]
        if without and fault(without) is not None:
            needed = without
    others = len(needed) - 1
    together = f"{what} of an update with it and {others} more is not finite, with fewer it is"
    return dict.fromkeys(needed, together if others else alone)


class CulpritWindow:
    """Which of the newest 100 records that came to be trained on were culprits, in log order.

    More than 5 are no longer bad luck with records, however few have come: 6 of the first 10, too.
    """

    def __init__(self) -> None:
        self._culprits: deque[bool] = deque(maxlen=_WINDOW_RECORDS)

    def take_in(self, culprits: Sequence[bool]) -> str | None:
        """The next records. Says what has happened if too many of the newest were culprits at any of them."""
        if not any(culprits):  # the usual case
            self._culprits.extend(culprits)
            return None
        for culprit in culprits:
            self._culprits.append(culprit)
            if culprit and sum(self._culprits) > _MOST_CULPRITS:
                return f"{sum(self._culprits)} of the newest {len(self._culprits)} records cannot be learnt"
        return None

    def state(self) -> StateTree:
        """{"culprits": bool (N,)}, oldest first."""
        return {"culprits": torch.tensor(list(self._culprits), dtype=torch.bool)}

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`; that of a release without a window is {}."""
        self._culprits.clear()
        if state:
            self._culprits.extend(cast(list[bool], cast(Tensor, state["culprits"]).tolist()))
