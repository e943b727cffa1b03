"""`recurring`: the classes come back, round after round, in other company each time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline import keyed_randomness
from pipeline.user_error import UserError
from producers.class_schedule import ClassSchedule, Plan, quotas, shuffled
from producers.pools import Pools


@dataclass(frozen=True, kw_only=True)
class Recurring(ClassSchedule):
    """Each round runs through all classes in steps, with an equal part of each class's records. The first round takes
    the classes in order, each later one in an order shuffled by the seed. Steps are counted through."""

    name = "recurring"
    rounds: int = 3

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise UserError(f"classes come back from the second round on; got --rounds {self.rounds}")

    def plan(self, pools: Pools, records: int | None, seed: int) -> Plan:
        counts = quotas(pools, records)
        parts = []
        for round_number in range(self.rounds):
            order = np.array(pools.in_order)
            if round_number > 0:
                order = keyed_randomness.generator(seed, "round", round_number).permutation(order)
            starts = np.cumsum([0, *(len(step) for step in pools.steps)])
            for number, (start, end) in enumerate(pairwise(starts)):
                step = [int(pool) for pool in order[start:end]]
                # Remainders go to the first rounds, one record each.
                share = [counts[pool] // self.rounds + (round_number < counts[pool] % self.rounds) for pool in step]
                step_number = round_number * len(pools.steps) + number
                parts.append(shuffled(step, share, keyed_randomness.generator(seed, "schedule", step_number)))
        return Plan(
            pool_N=np.concatenate(parts), step_N=np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        )
