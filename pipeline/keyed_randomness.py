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
    low = (seed & 0xFFFFFFFF) << 32 | zlib.crc32(purpose.encode())
    return np.random.Generator(np.random.Philox(key=(number << 64) | low))


def torch_seed(seed: int, purpose: str, number: int = 0) -> int:
    """A 63-bit seed for what only torch's own generators can initialise (weights of library networks)."""
    return int(generator(seed, purpose, number).integers(0, 2**63 - 1))


def torch_generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(torch_seed(seed, purpose, number))
