"""ER, DER and DER++ against numbers worked out by hand and against the authors' formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.retention.der import DarkExperienceReplay
from pipeline.retention.der_pp import DarkExperienceReplayPlusPlus
from pipeline.retention.er import ExperienceReplay
from pipeline.retention.term import Rows
from tests.pipeline.retention.rows import incoming, replay

NOTHING: dict[str, nn.Parameter] = {}
NEW = incoming(torch.zeros(1, 3), [0])


def random_rows(rows: int, columns: int) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    y = torch.randint(0, columns, (rows,), generator=random).tolist()
    return torch.randn(rows, columns, generator=random), y, torch.randn(rows, columns, generator=random)


def test_der_by_hand() -> None:
    term = DarkExperienceReplay(DarkExperienceReplay.Config(alpha=0.5), NOTHING)
    drawn = replay(
        torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]), [0, 1], torch.tensor([[0.0, 0.0, 0.0], [0.0, 4.0, 3.0]])
    )
    # row 0: 1 + 4 = 5; row 1: 16; each / 10, mean 1.05; half of it
    assert term.draws == 1
    assert term.loss(NEW, (drawn,))["logits"].item() == pytest.approx(0.525)


def test_der_sums_over_the_stored_columns_only() -> None:
    term = DarkExperienceReplay(DarkExperienceReplay.Config(alpha=1.0), NOTHING)
    logits = torch.tensor([[1.0, 2.0, 100.0], [1.0, 1.0, 1.0]], requires_grad=True)
    loss = term.loss(NEW, (replay(logits, [0, 1], torch.zeros(2, 3), columns=[2, 3]),))["logits"]
    assert loss.item() == pytest.approx((5.0 / 10 + 3.0 / 10) / 2)
    torch.autograd.backward(loss)
    # d / d logit = 2 * error / 10 / 2 rows
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[0.1, 0.2, 0.0], [0.1, 0.1, 0.1]]))


def test_der_pp_by_hand() -> None:
    term = DarkExperienceReplayPlusPlus(DarkExperienceReplayPlusPlus.Config(alpha=0.5, beta=2.0), NOTHING)
    first = replay(torch.tensor([[3.0, 1.0]]), [0], torch.tensor([[1.0, 1.0]]))
    second = replay(torch.tensor([[math.log(3.0), 0.0]]), [0], torch.tensor([[9.0, 9.0]]))
    loss = term.loss(NEW, (first, second))
    assert term.draws == 2
    assert loss["logits"].item() == pytest.approx(0.5 * 4 / 10)
    assert loss["labels"].item() == pytest.approx(2.0 * math.log(4 / 3))  # p = (3/4, 1/4)


def test_der_pp_is_the_authors_at_ten_columns() -> None:
    """aimagelab/mammoth, models/derpp.py: alpha * F.mse_loss(outputs, logits) + beta * loss(outputs, labels)."""
    config = DarkExperienceReplayPlusPlus.Config(alpha=0.2)
    assert config.beta == 1.0
    logits, y, stored = random_rows(128, 10)
    drawn = replay(logits, y, stored)
    loss = DarkExperienceReplayPlusPlus(config, NOTHING).loss(NEW, (drawn, drawn))
    torch.testing.assert_close(loss["logits"], 0.2 * F.mse_loss(logits, stored))
    torch.testing.assert_close(loss["labels"], 1.0 * F.cross_entropy(logits, torch.tensor(y)))
    one_draw = DarkExperienceReplay(DarkExperienceReplay.Config(), NOTHING).loss(NEW, (drawn,))
    assert torch.equal(one_draw["logits"], loss["logits"])


def test_er_by_hand() -> None:
    term = ExperienceReplay(ExperienceReplay.Config(weight=3.0), NOTHING)
    drawn = replay(torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), [0, 1], torch.zeros(2, 2))
    assert term.draws == 1
    assert term.loss(NEW, (drawn,))["labels"].item() == pytest.approx(3.0 * (math.log(4 / 3) + math.log(2)) / 2)


def test_er_at_weight_m_over_b_is_the_concatenated_mean_times_b_plus_m_over_b() -> None:
    b, m = 10, 30
    logits, y, stored = random_rows(b + m, 10)
    term = ExperienceReplay(ExperienceReplay.Config(weight=m / b), NOTHING)
    new: Rows = incoming(logits[:b], y[:b])
    drawn = replay(logits[b:], y[b:], stored[b:])
    ours = F.cross_entropy(new.logits_BK, new.y_B) + term.loss(new, (drawn,))["labels"]
    torch.testing.assert_close(ours, F.cross_entropy(logits, torch.tensor(y)) * (b + m) / b)
