"""The contract of a sampling: which slot of a bounded memory each sample of an endless stream takes, if any.

Legend: N = capacity, B = rows of a batch
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.keyed_randomness import KeyedGenerator
from pipeline.state import StateTree

Slots = npt.NDArray[np.int64]


class Sampling(ABC):
    """One way to choose. It is told of every sample that is offered, in the stream's order, and works on the CPU: what
    it chooses by must not wait for the device that holds the samples."""

    name: ClassVar[str]

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.keyed_generator = KeyedGenerator(seed)

    @abstractmethod
    def slots(self, column_B: Slots, column_N: Slots, *, seen: int, filled: int) -> Slots:
        """Where each of the next B samples goes, as if they came one by one; values >= N mean nowhere. Of two samples
        for one slot the later one stays.

        `column_B`: their logit columns. `column_N`: those of the samples held, of which the first `filled` count; not
        to be changed. `seen` samples were offered before. Random draws are keyed by (seed, "reservoir", seen). The
        slots in use are always the first ones, so a sample for a free slot takes the first of these.
        """

    def state(self) -> StateTree:
        """What it has to remember of samples that are no longer held."""
        return {}

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`."""
