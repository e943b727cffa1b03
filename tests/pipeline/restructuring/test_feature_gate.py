from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.restructuring.feature_gate import FeatureGate, heard
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.teacher import Answers


def rows(count: int, place: float, seed: int) -> Tensor:
    """Four features, of which the last never changes."""
    noise = torch.randn((count, 4), generator=torch.Generator().manual_seed(seed))
    return torch.where(torch.tensor([True, True, True, False]), noise + place, 7.0)


def fitted(stored: Tensor) -> FeatureGate:
    return FeatureGate(torch.cat([rows(500, -1.0, 0), rows(500, 1.0, 1)]), rows(200, 1.0, 2), stored, 0.01)


@pytest.mark.parametrize("count", [0, 20])
def test_it_tells_new_from_old_though_the_unlabelled_rows_hold_both(count: int) -> None:
    gate = fitted(rows(count, -1.0, 3))
    old, new = gate.log_odds(rows(300, -1.0, 4)), gate.log_odds(rows(300, 1.0, 5))
    assert (new[:, None] > old[None]).float().mean() > 0.97


def test_the_same_rows_give_the_same_bits() -> None:
    first, second = (fitted(rows(20, -1.0, 3)).log_odds(rows(300, 1.0, 5)) for _ in range(2))
    assert torch.equal(first, second)


def test_features_that_are_not_finite() -> None:
    with pytest.raises(Refused, match="not finite: lower learning_rate"):
        fitted(torch.full((20, 4), torch.nan))
    with pytest.raises(Refused, match="not finite: lower learning_rate"):
        fitted(rows(20, -1.0, 3)).log_odds(torch.full((20, 4), torch.inf))


def test_what_both_teachers_make_of_a_row_stands_side_by_side() -> None:
    old = Answers(logits_BC=torch.ones(3, 2), features_BD=torch.full((3, 4), 2.0), maps=())
    new = Answers(logits_BC=torch.full((3, 1), 3.0), features_BD=torch.full((3, 4), 4.0), maps=())
    assert heard(old, new)[0].tolist() == [2, 2, 2, 2, 4, 4, 4, 4, 1, 1, 3]
