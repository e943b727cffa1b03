"""Random draws keyed by (seed, purpose, number): nothing to save, nothing global, the same after every restart.

A counter-based generator (Philox; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") gives for
each key an independent stream. So a draw belongs to *its* update, however often the process was killed before it.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def generator(seed: int, purpose: str, number: int = 0) -> np.random.Generator:
    """The generator of one purpose ("replay/der_pp/0", "augment") at one number (an update, a record)."""
    return np.random.Generator(np.random.Philox(key=(number << 64) | _low(seed, purpose)))


def _low(seed: int, purpose: str) -> int:
    """The lower half of the key."""
    return (seed & 0xFFFFFFFF) << 32 | zlib.crc32(purpose.encode())


class KeyedGenerator:
    """`generator`, for those that draw in every update: one object that is keyed anew, which takes a seventh of the
    time that a new one takes. What was handed out before is another key's from then on."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._philox = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._philox)
        self._fresh = self._philox.state
        self._key = self._fresh["state"]["key"]
        self._purposes: dict[str, int] = {}

    def __call__(self, purpose: str, number: int = 0) -> np.random.Generator:
        """The generator of one purpose at one number, until the next call."""
        low = self._purposes.get(purpose)
        if low is None:
            low = self._purposes[purpose] = _low(self.seed, purpose)
        self._key[0], self._key[1] = low, number
        self._philox.state = self._fresh
        return self._generator


def torch_seed(seed: int, purpose: str, number: int = 0) -> int:
    """A 63-bit seed for what only torch's own generators can initialise (weights of library networks)."""
    return int(generator(seed, purpose, number).integers(0, 2**63 - 1))


def torch_generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(torch_seed(seed, purpose, number))
