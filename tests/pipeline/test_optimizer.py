from __future__ import annotations

import torch
from torch import nn

from pipeline.optimizer import Sgd
from pipeline.settings import OptimizerSettings

SETTINGS = OptimizerSettings(learning_rate=0.1, momentum=0.5, weight_decay=0.25)


def parameters() -> dict[str, nn.Parameter]:
    return {"weight": nn.Parameter(torch.full((2, 3), 4.0)), "never_used": nn.Parameter(torch.zeros(2))}


def step(optimizer: Sgd, held: dict[str, nn.Parameter]) -> None:
    held["weight"].grad = torch.ones(2, 3)
    optimizer.step()


def test_momenta_and_steps_by_hand() -> None:
    held = parameters()
    optimizer = Sgd(SETTINGS, held, {})
    assert not any(momentum.any() for momentum in optimizer.momenta.values())
    step(optimizer, held)  # v = 1 + 0.25 * 4 = 2; theta = 4 - 0.1 * 2
    torch.testing.assert_close(held["weight"].detach(), torch.full((2, 3), 3.8))
    step(optimizer, held)  # v = 0.5 * 2 + 1 + 0.25 * 3.8 = 2.95; theta = 3.8 - 0.295
    torch.testing.assert_close(held["weight"].detach(), torch.full((2, 3), 3.505))
    momenta = optimizer.momenta
    torch.testing.assert_close(momenta["weight"], torch.full((2, 3), 2.95))
    assert momenta["never_used"].tolist() == [0, 0]
    assert not any(momentum.requires_grad for momentum in momenta.values())


def test_another_optimizer_goes_on_with_the_momenta() -> None:
    held, copied = parameters(), parameters()
    optimizer = Sgd(SETTINGS, held, {})
    step(optimizer, held)
    copied["weight"].data.copy_(held["weight"])
    continued = Sgd(SETTINGS, copied, {name: m.clone() for name, m in optimizer.momenta.items()})
    step(optimizer, held)
    step(continued, copied)
    assert torch.equal(copied["weight"], held["weight"])
    at_rest = Sgd(SETTINGS, copied, {"of_another_network": torch.zeros(3)})
    assert not any(momentum.any() for momentum in at_rest.momenta.values())


def test_without_momentum_there_is_nothing_to_keep() -> None:
    held = parameters()
    optimizer = Sgd(OptimizerSettings(momentum=0.0), held, {"weight": torch.ones(2, 3)})
    step(optimizer, held)
    assert optimizer.momenta == {}


def test_steps_are_those_of_torch_bit_for_bit() -> None:
    for settings in (
        SETTINGS,
        OptimizerSettings(momentum=0.9),
        OptimizerSettings(weight_decay=0.01),
        OptimizerSettings(),
    ):
        random = torch.Generator().manual_seed(1)
        held = {name: nn.Parameter(torch.randn(7, 5, generator=random)) for name in ("a", "b", "c")}
        theirs = [nn.Parameter(parameter.detach().clone()) for parameter in held.values()]
        torchs = torch.optim.SGD(
            theirs,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            foreach=True,
        )
        ours = Sgd(settings, held, {})
        for number in range(5):
            for parameter, other in zip(held.values(), theirs, strict=True):
                # one of them takes no part at first
                some = number > 1 or other is not theirs[1]
                parameter.grad = torch.randn(7, 5, generator=random) if some else None
                other.grad = None if parameter.grad is None else parameter.grad.clone()
            ours.step()
            torchs.step()
        assert all(torch.equal(parameter, other) for parameter, other in zip(held.values(), theirs, strict=True))
