"""Values worked out by hand, and what may not move."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.incoming_loss import incoming_loss

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
    for known, y_B in ((3, torch.tensor([0, 1])), (4, torch.tensor([1, 2]))):
        absent = known == 4 or 2 not in y_B.tolist()
        same = torch.equal(
            incoming_loss(LOGITS_BK, y_B, known, "er_ace"), incoming_loss(LOGITS_BK, y_B, known, "cross_entropy")
        )
        assert same != absent
    both = torch.tensor([0, 1])
    assert torch.equal(incoming_loss(LOGITS_BK, both, 2, "er_ace"), incoming_loss(LOGITS_BK, both, 2, "cross_entropy"))


def test_old_classes_columns_get_no_gradient_and_the_others_the_softmaxs() -> None:
    logits_BK = LOGITS_BK.clone().requires_grad_()
    incoming_loss(logits_BK, Y_B, 3, "er_ace").backward()  # type: ignore[no-untyped-call]
    assert logits_BK.grad is not None
    expected = torch.tensor([[0.0, 2 / 4 - 1, 1 / 4, 1 / 4], [0.0, 3 / 10, 5 / 10 - 1, 2 / 10]]) / 2
    torch.testing.assert_close(logits_BK.grad, expected)
