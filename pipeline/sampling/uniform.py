"""Reservoir sampling: after t samples each of them is held with probability N / t, without knowing the end.

    sample t (from 0) takes slot t while t < N, else slot j drawn uniformly from 0..t, if j < N

Algorithm R of Vitter 1985, "Random sampling with a reservoir", doi:10.1145/3147.3165.

Where we differ: rows of erased subjects leave holes. The rows that stay are moved together, so that the first slots are
in use, and a sample whose slot is a hole goes behind them. What stays is still uniform over the samples that were not
erased: this is Algorithm R with the erased rows left where they were, unseen, until others overwrite them. Which
samples are drawn, and when one is overwritten, do not hang on what is looked at; and slots may be renumbered between
two samples, since every one of them is as likely to be drawn. So each sample is held with probability N / t as before,
only fewer than N are seen until the holes are full.

Legend: N = capacity, B = rows of a batch
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from pipeline.sampling.sampling import Sampling, Slots


class Uniform(Sampling):
    """Algorithm R; classes do not matter, so a class that is rare in the stream is rare in the memory."""

    name: ClassVar[str] = "uniform"

    def slots(self, column_B: Slots, column_N: Slots, *, seen: int, filled: int) -> Slots:
        rows = len(column_B)
        slots_B = np.arange(seen, seen + rows, dtype=np.int64)
        if seen + rows > self.capacity:
            drawn_B = self.keyed_generator("reservoir", seen).integers(0, slots_B + 1)
            slots_B = np.where(slots_B < self.capacity, slots_B, drawn_B)
        if filled < min(seen, self.capacity):
            for row in np.flatnonzero((slots_B >= filled) & (slots_B < self.capacity)):
                if slots_B[row] >= filled:  # else an earlier row of this batch has filled that slot
                    slots_B[row] = filled
                    filled += 1
        return slots_B
