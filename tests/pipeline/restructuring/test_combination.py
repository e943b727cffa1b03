from __future__ import annotations

import math

import pytest
import torch

from pipeline.restructuring.combination import Combination, Said, Scales, mean_of_both


def test_plain_is_side_by_side() -> None:
    said = Said(old_BO=torch.tensor([[3.0, 1.0]]), specialist_BN=torch.tensor([[7.0]]), gate_B=None)
    logits = Combination([0, 1], [2], 3).logits(said, Scales())
    assert logits.tolist() == [[1.0, -1.0, 0.0]]
    scaled = Combination([0, 1], [2], 3).logits(said, Scales(old=2.0, shift=3.0))  # 5, 1, 0, less their mean of 2
    assert scaled.tolist() == [[3.0, -1.0, -2.0]]


def test_gated_the_softmax_is_the_product_of_gate_and_teacher() -> None:
    """p(new) = 3/4; the old teacher shares the rest 1 to 3, the specialist its own 1 to 1."""
    said = Said(
        old_BO=torch.tensor([[0.0, math.log(3)]]),
        specialist_BN=torch.tensor([[5.0, 5.0]]),
        gate_B=torch.tensor([math.log(3) / 2]),
    )
    logits = Combination([2, 0], [1, 3], 4).logits(said, Scales(gate=2.0))
    assert logits.mean().item() == pytest.approx(0.0, abs=1e-6)
    expected = [3 / 16, 3 / 8, 1 / 16, 3 / 8]
    assert logits.softmax(dim=1)[0].tolist() == pytest.approx(expected)


def test_the_impossible_has_a_floor() -> None:
    said = Said(old_BO=torch.zeros(1, 1), specialist_BN=torch.zeros(1, 1), gate_B=torch.tensor([100.0]))
    assert Combination([0], [1], 2).logits(said, Scales()).tolist() == [[-6.0, 6.0]]  # -12 and 0, less their mean


def test_a_fit_finds_the_scale_and_shift_that_made_the_labels() -> None:
    random = torch.Generator().manual_seed(0)
    rows = 20_000
    said = Said(
        old_BO=torch.randn(rows, 2, generator=random),
        specialist_BN=torch.randn(rows, 2, generator=random),
        gate_B=torch.randn(rows, generator=random),
    )
    combination = Combination([0, 1], [2, 3], 4)
    true = Scales(old=3.0, specialist=0.5, gate=2.0, shift=0.0)
    probabilities = combination.logits(said, true).softmax(dim=1)
    y = torch.multinomial(probabilities, 1, generator=random)[:, 0]
    found = combination.fitted(said, y)
    assert found.old == pytest.approx(true.old, rel=0.1)
    assert found.specialist == pytest.approx(true.specialist, rel=0.1)
    assert found.gate == pytest.approx(true.gate, rel=0.1)
    assert found.shift == pytest.approx(true.shift, abs=0.1)
    assert found == combination.fitted(said, y)


def test_the_learners_own_network_is_averaged_in_as_probabilities() -> None:
    """1/4 and 3/4 beside 1/2 and 1/2, a fifth of it the learner's: 3/10 and 7/10."""
    taught, parent = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[2.0, 2.0]])
    logits = mean_of_both(taught, parent, 0.2)
    assert logits.softmax(dim=1)[0].tolist() == pytest.approx([0.3, 0.7])
    assert logits.mean().item() == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(mean_of_both(taught, parent, 0.0).softmax(dim=1), taught.softmax(dim=1))
