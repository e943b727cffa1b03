"""Which records came before: at-least-once producers and dead-letter replays send some of them again."""

from __future__ import annotations

import hashlib
from collections import deque
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipeline.state import StateTree


class RecentIds:
    """The newest `window` pairs of ce_source and ce_id, each by its `identity`; a window of 0 remembers nothing.

    Two different pairs share a hash with a chance of window / 2^64 per record: about once in 10^14 records at the
    default window, and the loss is one record taken for a repeat. A repeat keeps the place of its first arrival, so
    that one record sent over and over cannot push the others out.
    """

    def __init__(self, window: int) -> None:
        assert window >= 0, f"a window of {window} records"
        self._window = window
        self._in_order: deque[int] = deque()  # oldest first
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self._in_order)

    def __contains__(self, identity: int) -> bool:
        return identity in self._known

    def add(self, identity: int) -> None:
        """Remember the pair; the oldest one goes where the window is full."""
        if identity in self._known or not self._window:
            return
        if len(self._in_order) == self._window:
            self._known.remove(self._in_order.popleft())
        self._in_order.append(identity)
        self._known.add(identity)

    def state(self) -> StateTree:
        """{"hashes": int64 (N,)}, oldest first."""
        return {"hashes": torch.from_numpy(np.fromiter(self._in_order, dtype=np.int64, count=len(self._in_order)))}

    def load_state(self, state: StateTree) -> None:
        self._in_order.clear()
        self._known.clear()
        for value in cast(list[int], cast(Tensor, state["hashes"]).tolist()):
            self.add(value)


def identity(source: str, id: str) -> int:
    """The 64-bit hash of a pair, signed, as int64 tensors hold it.

    A lone surrogate (JSON can carry one) is a character like any other here.
    """
    text = f"{source}\0{id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)
