"""Stochastic gradient descent with momentum and weight decay, all parameters in one call each.

    v <- momentum * v + (gradient + weight_decay * theta);   theta <- theta - learning_rate * v

The operations are those of `torch.optim.SGD(foreach=True)`, bit for bit, without its class: that costs a small network
more than the step itself (hooks, profiling, grouping by device), and keeps its momenta by object, where names outlive
a head that grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.settings import OptimizerSettings


class Sgd:
    """Of one network's parameters."""

    def __init__(
        self, settings: OptimizerSettings, parameters: Mapping[str, nn.Parameter], momenta: Mapping[str, Tensor]
    ) -> None:
        """Goes on with these momenta, which it takes over; parameters not in them start at rest. `parameters` is live:
        after one was replaced, make another optimizer."""
        self._settings = settings
        self._parameters = dict(parameters)
        self._momenta: dict[str, Tensor] = {}
        if settings.momentum:
            self._momenta = {name: momenta[name] for name in momenta.keys() & parameters.keys()}

    @property
    def momenta(self) -> dict[str, Tensor]:
        """By the parameter's name, live; zero for one that was not stepped on yet. None of a frozen one, and without
        momentum none at all."""
        if not self._settings.momentum:
            return {}
        return {
            name: self._momenta[name] if name in self._momenta else torch.zeros_like(parameter, requires_grad=False)
            for name, parameter in self._parameters.items()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def step(self) -> None:
        """One step of all parameters that have a gradient."""
        settings = self._settings
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        trained: list[Tensor] = [self._parameters[name] for name in gradients]
        steps: Sequence[Tensor] = list(gradients.values())
        if settings.weight_decay:
            steps = torch._foreach_add(list(steps), trained, alpha=settings.weight_decay)
        if settings.momentum:
            for name, step in zip(gradients, steps, strict=True):
                if name not in self._momenta:
                    self._momenta[name] = torch.zeros_like(step)
            moved = [self._momenta[name] for name in gradients]
            torch._foreach_mul_(moved, settings.momentum)
            torch._foreach_add_(moved, list(steps))
            steps = moved
        torch._foreach_add_(trained, list(steps), alpha=-settings.learning_rate)
