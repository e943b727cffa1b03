"""The optimizer: stochastic gradient descent, as in the papers.

    v <- momentum * v + (g + weight_decay * theta),    theta <- theta - learning_rate * v

torch.optim.SGD (dampening 0, no Nesterov) does the same arithmetic, and a test holds them equal. Ours keeps momenta by
the parameter's name, so that growing and saving need no bookkeeping, and spares the two seconds in which torch.optim
loads torch's compiler at every start.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.settings import OptimizerSettings


class Sgd:
    """Steps on `parameters`, a live mapping: those that have a gradient."""

    def __init__(self, settings: OptimizerSettings, parameters: Mapping[str, nn.Parameter]) -> None:
        self._settings = settings
        self._parameters = parameters
        self._momenta: dict[str, Tensor] = {}
        if settings.momentum:
            self._momenta = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def forget_gradients(self) -> None:
        """Before a backward pass."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        settings = self._settings
        names = [name for name, parameter in self._parameters.items() if parameter.grad is not None]
        parameters: list[Tensor] = [self._parameters[name] for name in names]
        directions = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if settings.weight_decay:
            directions = list(torch._foreach_add(directions, parameters, alpha=settings.weight_decay))
        if settings.momentum:
            momenta = [self._momenta[name] for name in names]
            torch._foreach_mul_(momenta, settings.momentum)
            torch._foreach_add_(momenta, directions)
            directions = momenta
        torch._foreach_add_(parameters, directions, alpha=-settings.learning_rate)

    def grow(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Parameters in `shapes` have these new shapes, old values in the leading rows; new rows start at rest."""
        for name in self._momenta.keys() & shapes.keys():
            old = self._momenta[name]
            self._momenta[name] = old.new_zeros(shapes[name])
            self._momenta[name][: len(old)] = old

    def momenta(self) -> dict[str, Tensor]:
        """By the parameter's name, live; nothing without momentum."""
        return dict(self._momenta)

    def load_momenta(self, momenta: Mapping[str, Tensor]) -> None:
        """Inverse of `momenta`; parameters that are not in it start at rest."""
        for name, momentum in self._momenta.items():
            if name in momenta:
                momentum.copy_(momenta[name])
            else:
                momentum.zero_()
