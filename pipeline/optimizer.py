"""torch's stochastic gradient descent, with its momenta by the parameter's name: names outlive a head that grows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.settings import OptimizerSettings

_MOMENTUM = "momentum_buffer"  # torch.optim.SGD's own name for it


def sgd(
    settings: OptimizerSettings, parameters: Mapping[str, nn.Parameter], momenta: Mapping[str, Tensor]
) -> torch.optim.SGD:
    """A new optimizer that goes on with these momenta, which it takes over; parameters not in them start at rest."""
    optimizer = torch.optim.SGD(
        parameters.values(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        foreach=True,
    )
    if settings.momentum:
        for name in momenta.keys() & parameters.keys():
            optimizer.state[parameters[name]][_MOMENTUM] = momenta[name]
    return optimizer


def momenta_of(optimizer: torch.optim.SGD, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """By the parameter's name, live; zero for one that was never stepped on, nothing at all without momentum."""
    if not optimizer.defaults["momentum"]:
        return {}
    held = {name: optimizer.state[p].get(_MOMENTUM) if p in optimizer.state else None for name, p in parameters.items()}
    return {name: torch.zeros_like(parameters[name]) if value is None else value for name, value in held.items()}
