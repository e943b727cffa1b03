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

from pipeline.record import Record
from pipeline.settings import OptimizerSettings
from pipeline.state import StateTree

_WINDOW_RECORDS = 100
_MOST_CULPRITS = 5  # among the newest `_WINDOW_RECORDS`
_PLACES_NAMED = 6  # of culprits, in an error of one line


class WeightsDiverged(RuntimeError):
    """Nothing more can be learnt with these weights. One line: what happened, and the ways out."""


def weights_diverged(
    what_happened: str, settings: OptimizerSettings, culprits: Sequence[Record] = ()
) -> WeightsDiverged:
    """The error with the ways out. `culprits` are the newest ones, in log order; none where records are not to blame.

    The optimizer's settings are fixed for a state: only another branch can be given others.
    """
    happened, ways_out = what_happened, []
    if culprits:
        newest = culprits[-_PLACES_NAMED:]
        happened += f", the newest at {', '.join(f'{each.log_partition}@{each.offset}' for each in newest)}"
        ways_out = [
            "look at what the producer sends there",
            "go on past them with kafka-delete-records.sh and --accept-gap",
        ]
    clipped = "none" if settings.max_gradient_norm is None else f"{settings.max_gradient_norm:g}"
    ways_out.append(
        "begin another --branch before it (--from-state, --from-snapshot) with a lower "
        f"learner.optimizer.learning_rate (now {settings.learning_rate:g}) or max_gradient_norm (now {clipped})"
    )
    return WeightsDiverged(f"{happened}: {', or '.join(ways_out)}")


def find_culprits(rows: Sequence[int], what: str, fault: Callable[[Sequence[int]], str | None]) -> dict[int, str]:
    """{row: one line that says why}, at least one, of rows whose update is not finite; `what` says what is wrong.

    `fault` says it of an update on some of the rows, None where nothing is. Both halves are judged, each apart, down to
    single rows. Where each half can be learnt and only both together cannot, rows are taken out one after the other as
    long as the rest still cannot: those that remain need each other, and all are culprits.

    Rows may stand that only together with others cannot be learnt: ask again for what is left.
    """
    alone = f"{what} in an update with it"
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
    together = f"{what} in an update with it and {others} more, and nothing is wrong with fewer"
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
