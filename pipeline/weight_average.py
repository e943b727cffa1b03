"""Averaged weights: what predicts is the recent mean of the weights, which the last few batches have not yet bent.

    avg <- avg + a_t * (theta - avg),   a_t = max(a, 1 / t)      after update t = 1, 2, ...

The plain mean of all weights so far, until it would reach back further than 1 / a updates; then an exponential one.
Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging", doi:10.1137/0330046; the exponential
form as in Tarvainen and Valpola 2017, arXiv:1703.01780, section 2.

Training never sees the average: evaluation on hold-outs and versions do. Batch norms' running statistics are averaged
with the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.state import StateTree


class WeightAverage:
    """Of a network's parameters and floating-point buffers, by their names in its state dict."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        self._network = network
        self._rate = rate
        self._updates = 0
        self._live = self._find_live()
        self._average: dict[str, Tensor] = {name: tensor.clone() for name, tensor in self._live.items()}

    def _find_live(self) -> dict[str, Tensor]:
        """The network's own tensors, by name: a head that grew has new ones."""
        tensors = self._network.state_dict(keep_vars=True)
        return {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}

    def update(self) -> None:
        """The optimizer has stepped."""
        self._updates += 1
        weight = max(self._rate, 1.0 / self._updates)
        torch._foreach_lerp_([self._average[name] for name in self._live], list(self._live.values()), weight)

    def grow(self) -> None:
        """The head grew: new rows begin at the live ones."""
        self._live = self._find_live()
        for name, tensor in self._live.items():
            before = self._average[name]
            if before.shape != tensor.shape:
                after = tensor.clone()
                after[: len(before)] = before
                self._average[name] = after  # a new dict entry: `kept` below holds on to the old one

    def kept(self) -> dict[str, Tensor]:
        """The average's tensors as they are, for `put_back` where a growth is undone."""
        return dict(self._average)

    def put_back(self, kept: Mapping[str, Tensor]) -> None:
        self._average = dict(kept)
        self._live = self._find_live()

    @contextmanager
    def in_place_of_the_weights(self) -> Iterator[None]:
        """Inside, the network predicts with the average; after, its weights are as they were, bit for bit."""
        before = {name: tensor.clone() for name, tensor in self._live.items()}
        try:
            for name, tensor in self._live.items():
                tensor.copy_(self._average[name])
            yield
        finally:
            for name, tensor in self._live.items():
                tensor.copy_(before[name])

    def state(self) -> StateTree:
        """References to live tensors: the learner copies."""
        return {"updates": self._updates, "weights": cast(StateTree, dict(self._average))}

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`."""
        self._updates = cast(int, state["updates"])
        weights = cast("dict[str, Tensor]", state["weights"])
        self._average = {name: weights[name].to(tensor.device, copy=True) for name, tensor in self._live.items()}
