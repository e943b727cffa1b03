"""Values worked out by hand, and what may not move."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from pipeline.incoming_loss import incoming_loss
from pipeline.settings import LearnerSettings

# Four columns: 0, 1 and 2 are known, 3 is spare. The batch holds classes 1 and 2.
LOGITS_BK = torch.log(torch.tensor([[4.0, 2.0, 1.0, 1.0], [1.0, 3.0, 5.0, 2.0]]))
Y_B = torch.tensor([1, 2])


def test_cross_entropy_runs_over_all_columns() -> None:
    by_hand = (math.log(8 / 2) + math.log(11 / 5)) / 2
    assert incoming_loss(LOGITS_BK, Y_B, 3, "cross_entropy").item() == pytest.approx(by_hand)


def test_er_ace_leaves_out_the_known_classes_that_are_not_in_the_batch() -> None:
    by_hand = (math.log(4 / 2) + math.log(10 / 5)) / 2  # column 0 out; 1 and 2 are the batch's own, 3 not yet seen
    assert incoming_loss(LOGITS_BK, Y_B, 3, "er_ace").item() == pytest.approx(by_hand)


def test_er_ace_is_the_cross_entropy_where_nothing_older_is_known() -> None:
    both = torch.tensor([0, 1])
    assert torch.equal(incoming_loss(LOGITS_BK, both, 2, "er_ace"), incoming_loss(LOGITS_BK, both, 2, "cross_entropy"))


def test_old_classes_columns_get_no_gradient_and_the_others_the_softmaxs() -> None:
    logits_BK = LOGITS_BK.clone().requires_grad_()
    incoming_loss(logits_BK, Y_B, 3, "er_ace").backward()  # type: ignore[no-untyped-call]
    assert logits_BK.grad is not None
    expected = torch.tensor([[0.0, 2 / 4 - 1, 1 / 4, 1 / 4], [0.0, 3 / 10, 5 / 10 - 1, 2 / 10]]) / 2
    torch.testing.assert_close(logits_BK.grad, expected)


@pytest.mark.parametrize(
    ("asked", "terms", "chosen"),
    [
        ("auto", ["der_pp", "ewc_pp"], "er_ace"),
        ("auto", ["er"], "er_ace"),
        ("auto", ["der"], "cross_entropy"),
        ("auto", ["ewc_pp"], "cross_entropy"),
        ("auto", [], "cross_entropy"),
        ("cross_entropy", ["er"], "cross_entropy"),
        ("er_ace", ["er"], "er_ace"),
    ],
)
def test_auto_wants_a_term_that_replays_labels(asked: str, terms: list[str], chosen: str) -> None:
    settings = LearnerSettings.model_validate({"incoming_loss": asked, "retention": {name: {} for name in terms}})
    assert settings.chosen_incoming_loss == chosen


def test_er_ace_alone_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValidationError, match=r"add er or der_pp, or take auto"):
        LearnerSettings.model_validate({"incoming_loss": "er_ace", "retention": {"ewc_pp": {}}})
