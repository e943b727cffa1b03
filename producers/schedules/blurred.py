"""`blurred`: as `split`, but around each border the share of the next step's classes rises linearly from 0 to 1.

Around the border between steps of lengths L and M lies a window of blur * min(L, M) records. Of its records, those of
the step before and those of the step after, equally many, get positions x in 0..1 with the densities 2 (1 - x) and 2 x:
their sum is constant and the second one's share of it is x. So every draw of the split is still there, once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline import keyed_randomness
from pipeline.user_error import UserError
from producers.class_schedule import ClassSchedule, Plan, quotas
from producers.pools import Pools
from producers.schedules.split import split_plan


@dataclass(frozen=True, kw_only=True)
class Blurred(ClassSchedule):
    """`blur` is the window's length as a share of the shorter step beside the border. 0 is `split`; at 1 a step has
    hardly begun alone when the next one's classes come in."""

    name = "blurred"
    blur: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.blur <= 1.0:
            raise UserError(f"--blur is a share from 0 to 1; got {self.blur}")

    def plan(self, pools: Pools, records: int | None, seed: int) -> Plan:
        """1. The split. 2. At each border: positions of the window's records, 3. which are then sorted by them."""
        # 1.
        split = split_plan(pools, quotas(pools, records), seed)
        order = np.arange(len(split))
        lengths = np.bincount(split.step_N, minlength=len(pools.steps))
        borders = np.cumsum(lengths)[:-1]
        for number, border in enumerate(borders):
            # 2. Half windows are no longer than half a step, so that no two windows meet.
            half = int(self.blur * min(lengths[number], lengths[number + 1]) / 2)
            if half == 0:
                continue
            uniform = keyed_randomness.generator(seed, "blur", number).random((2, half))
            position = np.concatenate([1 - np.sqrt(1 - uniform[0]), np.sqrt(uniform[1])])
            # 3.
            window = slice(border - half, border + half)
            order[window] = order[window][np.argsort(position, kind="stable")]
        return Plan(pool_N=split.pool_N[order], step_N=split.step_N[order])
