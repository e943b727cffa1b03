from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.settings import OptimizerSettings
from pipeline.sgd import Sgd


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (4, 3), "bias": (4,), "frozen": (2,)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_it_steps_as_torch_does(momentum: float, weight_decay: float) -> None:
    ours, theirs = parameters(), parameters()
    sgd = Sgd(OptimizerSettings(learning_rate=0.1, momentum=momentum, weight_decay=weight_decay), ours)
    reference = torch.optim.SGD(theirs.values(), lr=0.1, momentum=momentum, weight_decay=weight_decay, foreach=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        sgd.forget_gradients()
        for name in ("weight", "bias"):
            gradient = torch.randn(ours[name].shape, generator=generator)
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        sgd.step()
        reference.step()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name


def test_grown_rows_start_at_rest_and_old_ones_keep_their_momentum() -> None:
    held = parameters()
    sgd = Sgd(OptimizerSettings(learning_rate=0.1, momentum=0.5), held)
    for parameter in held.values():
        parameter.grad = torch.ones_like(parameter)
    sgd.step()
    held["bias"] = nn.Parameter(torch.cat([held["bias"].detach(), torch.zeros(2)]))
    sgd.grow({"bias": (6,)})
    assert sgd.momenta()["bias"].tolist() == [1, 1, 1, 1, 0, 0]
    held["bias"].grad = torch.ones(6)
    sgd.step()
    assert sgd.momenta()["bias"].tolist() == [1.5, 1.5, 1.5, 1.5, 1, 1]


def test_momenta_that_are_missing_start_at_rest() -> None:
    held = parameters()
    sgd = Sgd(OptimizerSettings(momentum=0.5), held)
    for parameter in held.values():
        parameter.grad = torch.ones_like(parameter)
    sgd.step()
    sgd.load_momenta({"bias": torch.full((4,), 3.0)})
    assert sgd.momenta()["bias"].tolist() == [3, 3, 3, 3]
    assert not sgd.momenta()["weight"].any()
    assert Sgd(OptimizerSettings(), held).momenta() == {}
