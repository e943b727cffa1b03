"""Each loss against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.restructuring import distillation


def test_centred_logits_side_by_side_with_a_class_that_both_know() -> None:
    old = torch.tensor([[3.0, 1.0, 2.0]])  # centred: 1, -1, 0
    new = torch.tensor([[4.0, 8.0]])  # centred: -2, 2
    of_teachers = [
        (distillation.centred(old), [0, 1, 2]),
        (distillation.centred(new), [2, 3]),  # class 2 is known to both
    ]
    target = distillation.side_by_side(of_teachers, 4)
    assert target.tolist() == [[1.0, -1.0, -1.0, 2.0]]  # class 2: the mean of 0 and -2
    # (0 - 1)^2 + (0 + 1)^2 + (0 + 1)^2 + (0 - 2)^2 over four classes
    assert distillation.squared_error(torch.zeros(1, 4), target).item() == pytest.approx(7 / 4)


def test_a_class_that_no_teacher_knows_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="no teacher knows"):
        distillation.side_by_side([(torch.zeros(1, 2), [0, 1])], 3)


def test_temperature() -> None:
    student = torch.tensor([[0.0, 0.0]])
    teacher = torch.tensor([[2 * math.log(3), 0.0]])  # softened at T = 2: 3/4, 1/4
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert distillation.temperature_divergence(student, teacher, 2.0).item() == pytest.approx(expected)
    # as T grows: half the squared error of the centred logits
    student, teacher = torch.tensor([[0.5, -0.5]]), torch.tensor([[1.0, -1.0]])
    hot = distillation.temperature_divergence(student.double(), teacher.double(), 1000.0).item()
    assert hot == pytest.approx(distillation.squared_error(student, teacher).item() / 2, rel=1e-4)


def test_hints() -> None:
    # half of (1 + 9) / 2
    error = distillation.hint_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 5.0]]))
    assert error.item() == pytest.approx(2.5)


def test_attention() -> None:
    # channels (1, 0) and (2, 0) at two pixels, and of another network (0, 3) and (0, 0)
    student = torch.tensor([[[[1.0, 0.0]], [[2.0, 0.0]]]])
    teacher = torch.tensor([[[[0.0, 3.0]]]])
    maps = [distillation.attention_map(activations) for activations in (student, teacher)]
    assert maps[0].tolist() == [[1.0, 0.0]]
    assert maps[1].tolist() == [[0.0, 1.0]]
    error = distillation.attention_error([maps[0]], [maps[1]])
    assert error.item() == pytest.approx(math.sqrt(2) / 2)
    of_tokens = distillation.attention_map(torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))  # two tokens of width two
    assert of_tokens.tolist() == [[1.0, 0.0]]


def test_relations() -> None:
    # On a line at 0, 1, 3: distances 1, 3, 2, of mean 2. The teacher's at 0, 2, 6 are the same in units of their mean.
    line = torch.tensor([[0.0], [1.0], [3.0]])
    assert distillation.relational_error(line, 2 * line).item() == pytest.approx(0.0, abs=1e-6)
    # At 0, 3, 1 the pairs 01, 02, 12 have 1.5, 0.5, 1 instead of 0.5, 1.5, 1: Huber 1/2 each for two of three pairs,
    # and the diagonal counts among the 9.
    other = torch.tensor([[0.0], [3.0], [1.0]])
    distances = 2 * (0.5 + 0.5) / 9
    # The angle of i, j, k at j is 1 or -1: at row 1 (between the others, or not) and at row 2 it differs by 2, both
    # ways round: Huber 1.5, in 4 of 27 triplets.
    angles = 4 * 1.5 / 27
    assert distillation.relational_error(line, other).item() == pytest.approx(distances + 2 * angles)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_gradients_are_finite_where_rows_are_the_same(rows: int) -> None:
    """Dead features, or a text that came twice: a distance of zero has no direction."""
    features = torch.zeros(rows, 3, requires_grad=True)
    taught = torch.arange(rows * 3.0).reshape(rows, 3)
    error = distillation.relational_error(features, taught)
    maps = distillation.attention_map(features.reshape(rows, 3, 1, 1))
    same = distillation.attention_error([maps], [maps.detach()])
    torch.autograd.backward(error + same)
    gradient = features.grad
    assert isinstance(gradient, Tensor)
    assert bool(gradient.isfinite().all())
