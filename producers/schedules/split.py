"""`split`: step after step, each with classes of its own that never come again (class-incremental learning)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline import keyed_randomness
from producers.class_schedule import ClassSchedule, Plan, quotas, shuffled
from producers.pools import Pools


@dataclass(frozen=True, kw_only=True)
class Split(ClassSchedule):
    """Disjoint steps, shuffled within."""

    name = "split"

    def plan(self, pools: Pools, records: int | None, seed: int) -> Plan:
        return split_plan(pools, quotas(pools, records), seed)


def split_plan(pools: Pools, counts: list[int], seed: int) -> Plan:
    """`counts[p]` draws of pool p, in the pools' steps."""
    parts = [
        shuffled(step, [counts[pool] for pool in step], keyed_randomness.generator(seed, "schedule", number))
        for number, step in enumerate(pools.steps)
    ]
    lengths = [len(part) for part in parts]
    return Plan(pool_N=np.concatenate(parts), step_N=np.repeat(np.arange(len(parts)), lengths))
