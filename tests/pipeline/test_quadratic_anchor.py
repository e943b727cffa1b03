from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.quadratic_anchor import QuadraticAnchor


def weights(*values: float) -> dict[str, nn.Parameter]:
    return {"head.weight": nn.Parameter(torch.tensor([values]).T)}


def test_by_hand() -> None:
    parameters = weights(1.0, 2.0)
    anchor = QuadraticAnchor(parameters)
    assert not anchor.stiffness
    anchor.move({"head.weight": torch.tensor([[4.0], [0.5]])})
    assert anchor.holds
    with torch.no_grad():
        parameters["head.weight"].add_(torch.tensor([[3.0], [-2.0]]))
    penalty = anchor.penalty(strength=0.5)
    # 0.5 / 2 * (4 * 9 + 0.5 * 4) = 9.5; gradient 0.5 * F * away = (6, -0.5)
    assert penalty.item() == pytest.approx(9.5)
    torch.autograd.backward(3.0 * penalty)
    grad = parameters["head.weight"].grad
    assert grad is not None
    assert grad.flatten().tolist() == pytest.approx([18.0, -1.5])


def test_value_and_gradient_are_those_of_the_ordinary_graph() -> None:
    random = torch.Generator().manual_seed(4)
    shapes = {"a": (3, 4), "b": (5,), "c": (2, 3, 3, 3)}
    parameters = {n: nn.Parameter(torch.randn(s, generator=random, dtype=torch.float64)) for n, s in shapes.items()}
    stiffness = {n: torch.rand(s, generator=random, dtype=torch.float64) for n, s in shapes.items()}
    anchor = QuadraticAnchor(parameters)
    anchor.move(stiffness)
    place = {n: p.detach().clone() for n, p in parameters.items()}
    with torch.no_grad():
        for p in parameters.values():
            p.add_(torch.randn(p.shape, generator=random, dtype=torch.float64))
    plain = 0.7 / 2 * torch.stack([(stiffness[n] * (p - place[n]) ** 2).sum() for n, p in parameters.items()]).sum()
    ours = anchor.penalty(0.7)
    torch.testing.assert_close(ours, plain)
    expected = torch.autograd.grad(plain, list(parameters.values()))
    got = torch.autograd.grad(ours, list(parameters.values()))
    torch.testing.assert_close(got, expected)


def test_moves_both_together_and_keeps_copies() -> None:
    parameters = weights(1.0)
    stiffness = {"head.weight": torch.tensor([[2.0]])}
    anchor = QuadraticAnchor(parameters)
    anchor.move(stiffness)
    stiffness["head.weight"].fill_(100.0)  # a running Fisher goes on
    with torch.no_grad():
        parameters["head.weight"].fill_(4.0)
    assert anchor.penalty(2.0).item() == pytest.approx(2.0 * 9)
    anchor.move(stiffness)
    assert anchor.penalty(2.0).item() == 0.0


def test_new_rows_are_not_held() -> None:
    parameters = weights(1.0, 2.0)
    anchor = QuadraticAnchor(parameters)
    anchor.move({"head.weight": torch.tensor([[4.0], [0.5]])})
    parameters["head.weight"] = nn.Parameter(torch.tensor([[4.0], [0.0], [1000.0], [-1000.0]]))
    anchor.grow({"head.weight": (4, 1)})
    penalty: Tensor = anchor.penalty(0.5)
    assert penalty.item() == pytest.approx(9.5)
    torch.autograd.backward(penalty)
    grad = parameters["head.weight"].grad
    assert grad is not None
    assert grad.flatten().tolist() == pytest.approx([6.0, -0.5, 0.0, 0.0])


def test_of_another_network_it_holds_the_other_weights() -> None:
    parameters = weights(1.0, 2.0)
    anchor = QuadraticAnchor(parameters)
    anchor.load_state({"stiffness": {"head.weight": torch.ones(3, 2)}, "place": {"head.weight": torch.ones(3, 2)}})
    version = anchor.version
    anchor.move({"head.weight": torch.tensor([[4.0], [0.5]])})
    assert anchor.version != version
    assert not anchor.penalty(1.0).item()
    assert anchor.stiffness["head.weight"].shape == (2, 1)
