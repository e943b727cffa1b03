"""torch's stochastic gradient descent, with its momenta by the parameter's name: names outlive a head that grows.

The arithmetic is torch's, called as a function: `torch.optim.Optimizer` around it costs as much as a small network's
whole step (hooks, profiling, state by parameter), and keeps its momenta by object.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from pipeline.settings import OptimizerSettings


class Sgd:
    """v <- momentum * v + (gradient + weight_decay * theta);  theta <- theta - learning_rate * v"""

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
        """By the parameter's name, live; zero for one that was never stepped on, nothing at all without momentum."""
        if not self._settings.momentum:
            return {}
        return {
            name: self._momenta[name] if name in self._momenta else torch.zeros_like(parameter, requires_grad=False)
            for name, parameter in self._parameters.items()
        }

    def forget_gradients(self) -> None:
        """Before a backward pass."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step of all parameters that have a gradient."""
        settings, trained = self._settings, {n: p for n, p in self._parameters.items() if p.grad is not None}
        momenta: list[Tensor | None] = [self._momenta.get(name) for name in trained]
        sgd(
            list(trained.values()),
            [parameter.grad for parameter in trained.values() if parameter.grad is not None],
            momenta,
            foreach=True,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            lr=settings.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if settings.momentum:
            for name, momentum in zip(trained, momenta, strict=True):
                assert momentum is not None, "torch makes it with the first step"
                self._momenta[name] = momentum
