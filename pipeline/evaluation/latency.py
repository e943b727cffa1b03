"""How long classifiers take for one row, measured in turns, so that what else the machine does hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

# What a first call does once (threads, memory, kernels chosen by size) is no part of the answer to a request.
_WARM_UP = 5
_TIMES = 51

Predict = Callable[[npt.NDArray[np.generic]], object]  # of rows (1, ...)


def latencies_seconds(
    predictors: Sequence[Predict],
    rows: npt.NDArray[np.generic],
    *,
    times: int = _TIMES,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Median seconds of one prediction of one row, of each; `rows` (n, ...) are taken in turn, n at least 1.

    Each goes first as often as the others: who comes second finds the row in the cache.
    """
    seconds: list[list[float]] = [[] for _ in predictors]
    for turn in range(-_WARM_UP, times):
        row = rows[turn % len(rows)][None]
        for place in range(len(predictors)):
            which = (place + turn) % len(predictors)
            began = clock()
            predictors[which](row)
            took = clock() - began
            if turn >= 0:
                seconds[which].append(took)
    return [statistics.median(of_one) for of_one in seconds]
