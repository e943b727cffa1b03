"""The contract of a schedule: which classes come when.

Legend: N records of the stream, P pools
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.user_error import UserError
from producers.pools import Pools, apportioned


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One draw a record: from which pool, in which step, turned how far. Which item of the pool is not its matter."""

    pool_N: npt.NDArray[np.int64]
    step_N: npt.NDArray[np.int64]  # counted from 0; becomes ce_task
    turn_degrees_N: npt.NDArray[np.float64] | None = None  # counter-clockwise; None: nothing turns

    def __len__(self) -> int:
        return len(self.pool_N)


class ClassSchedule(ABC):
    """One file of `producers/schedules/` holds one subclass, a frozen dataclass whose fields are its options; found by
    itself. `_` in the file's name is `-` in the schedule's."""

    name: ClassVar[str]

    @abstractmethod
    def plan(self, pools: Pools, records: int | None, seed: int) -> Plan:
        """The whole stream; the same for the same arguments. `records` None: every item of the pools once, as far as
        the schedule takes all. Otherwise exactly so many draws (1 or more), in the pools' proportions."""


def quotas(pools: Pools, records: int | None) -> list[int]:
    """Draws of each pool: its size, or its share of `records`."""
    return list(pools.sizes) if records is None else apportioned(records, pools.sizes)


def shuffled(pools: Sequence[int], counts: Sequence[int], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """`counts[i]` draws of `pools[i]`, mixed."""
    return generator.permutation(np.repeat(np.asarray(pools, dtype=np.int64), np.asarray(counts, dtype=np.int64)))


def schedule_with(kind: type[ClassSchedule], options: dict[str, Any]) -> ClassSchedule:
    """The schedule with those of the options that are given; `UserError` for one that it does not have."""
    given = {option: value for option, value in options.items() if value is not None}
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # every subclass is a dataclass
    for option in given:
        if option not in known:
            takes = f"takes --{', --'.join(sorted(known))}" if known else "takes no option"
            raise UserError(f"schedule {kind.name} has no --{option}; it {takes}")
    return kind(**given)
