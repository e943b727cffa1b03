"""Epochs over rows that are all at hand, which can stop after any step and go on to the same bits.

AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101) at a learning rate that
rises over the first tenth of the steps and then falls to zero: on a line, as encoders of texts are trained (Devlin et
al. 2019, arXiv:1810.04805, appendix A.2), or on half a cosine (Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient
Descent with Warm Restarts", arXiv:1608.03983, equation 5).

Legend: N = rows, B = rows of one step
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline import keyed_randomness
from pipeline.state import StateTree

_WARM_UP = 0.1  # share of the steps

Falls = Literal["line", "cosine"]


class Training:
    """Of one module's parameters. The order of the rows is keyed by (seed, purpose, epoch)."""

    def __init__(
        self,
        module: nn.Module,
        *,
        rows: int,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        seed: int,
        purpose: str,
        falls: Falls = "line",
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """`shares`: {beginning of parameters' names: their share of the learning rate}; others have all of it."""
        assert rows > 0, "there is nothing to train on"
        self._module = module
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self._parameters.items():
            groups.setdefault(_share_of(name, shares or {}), []).append(parameter)
        self._shares = list(groups)
        self._optimizer = torch.optim.AdamW(
            [{"params": parameters} for parameters in groups.values()],
            lr=learning_rate,
            weight_decay=weight_decay,
            foreach=True,
        )
        self._rows, self._batch_size, self._learning_rate = rows, batch_size, learning_rate
        self._seed, self._purpose, self._falls = seed, purpose, falls
        self._steps_per_epoch = -(-rows // batch_size)
        self._order_N: npt.NDArray[np.int64] = np.empty(0, np.int64)  # of the epoch under way
        self.steps = epochs * self._steps_per_epoch
        self.done = 0

    @property
    def is_done(self) -> bool:
        return self.done == self.steps

    def rows(self) -> npt.NDArray[np.int64]:
        """(B,) rows of the next step."""
        epoch, step = divmod(self.done, self._steps_per_epoch)
        if not step or not len(self._order_N):
            self._order_N = keyed_randomness.generator(self._seed, self._purpose, epoch).permutation(self._rows)
        return self._order_N[step * self._batch_size : (step + 1) * self._batch_size]

    def draw(self, what: str, of: int, size: int) -> npt.NDArray[np.int64]:
        """min(size, of) numbers below `of` without repeats, keyed by what they are for and the step."""
        generator = keyed_randomness.generator(self._seed, f"{self._purpose}/{what}", self.done)
        return generator.choice(of, min(size, of), replace=False, shuffle=False)

    def step(self, loss: Tensor) -> None:
        """Take the step that lowers it."""
        for group, share in zip(self._optimizer.param_groups, self._shares, strict=True):
            group["lr"] = self._learning_rate * share * self._share()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.done += 1

    def _share(self) -> float:
        """Of the learning rate, at the step to come."""
        warm_up = max(1, round(_WARM_UP * self.steps))
        if self.done < warm_up:
            return (self.done + 1) / warm_up
        left = (self.steps - self.done) / max(1, self.steps - warm_up)
        return left if self._falls == "line" else 0.5 * (1 - math.cos(math.pi * left))

    def state(self) -> StateTree:
        """Copies on the CPU."""
        first: StateTree = {}
        second: StateTree = {}
        for name, parameter in self._parameters.items():
            moments = self._optimizer.state.get(parameter)
            if moments:
                first[name] = _copy(moments["exp_avg"])
                second[name] = _copy(moments["exp_avg_sq"])
        weights: StateTree = {name: _copy(tensor) for name, tensor in self._module.state_dict().items()}
        return {"done": self.done, "weights": weights, "first": first, "second": second}

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`."""
        self.done = cast(int, state["done"])
        self._order_N = np.empty(0, np.int64)
        self._module.load_state_dict(cast("dict[str, Tensor]", state["weights"]))
        first, second = (cast("Mapping[str, Tensor]", state[name]) for name in ("first", "second"))
        for name, parameter in self._parameters.items():
            if name in first:
                moments: dict[str, Any] = {
                    "step": torch.tensor(float(self.done)),
                    # laid out in memory as the weights are
                    "exp_avg": torch.empty_like(parameter).copy_(first[name]).detach(),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(second[name]).detach(),
                }
                self._optimizer.state[parameter] = moments


def _share_of(name: str, shares: Mapping[str, float]) -> float:
    return next((share for begin, share in shares.items() if name.startswith(begin)), 1.0)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
