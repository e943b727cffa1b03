"""`long-tail`: as `split`, with class frequencies that fall exponentially from the first class to the last.

The class in place k of K keeps the share imbalance^(-k / (K - 1)) of its records: the last one 1 / imbalance.
Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", CVPR, section 5.1 (n_k = n mu^k); in steps
as in Liu et al. 2022, "Long-Tailed Class Incremental Learning", ECCV.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.user_error import UserError
from producers.class_schedule import ClassSchedule, Plan
from producers.pools import Pools, apportioned
from producers.schedules.split import split_plan


@dataclass(frozen=True, kw_only=True)
class LongTail(ClassSchedule):
    """`imbalance` is how many times as frequent the first class is as the last. Without a number of records the rest of
    the data set is not sent; with --classes-per-step as large as the number of classes there is one step for all."""

    name = "long-tail"
    imbalance: float = 100.0

    def __post_init__(self) -> None:
        if not self.imbalance >= 1.0:
            raise UserError(f"--imbalance is 1 (none) or more; got {self.imbalance}")

    def plan(self, pools: Pools, records: int | None, seed: int) -> Plan:
        last = max(1, len(pools.sizes) - 1)
        wanted = [0.0] * len(pools.sizes)
        for place, pool in enumerate(pools.in_order):
            wanted[pool] = pools.sizes[pool] * self.imbalance ** (-place / last)
        counts = [max(1, int(share)) for share in wanted] if records is None else apportioned(records, wanted)
        return split_plan(pools, counts, seed)
