"""EWC++ and online EWC on one weight, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from pipeline.retention.ewc import OnlineEwc
from pipeline.retention.ewc_pp import EwcPlusPlus
from pipeline.retention.term import Change, RetentionTerm
from tests.pipeline.retention.rows import incoming
from tests.system_package import require_module

NEW = incoming(torch.zeros(1, 3), [0])


class GivenGradients:
    """Squares as a test wants them."""

    def __init__(self, mean_of_squares: float, square_of_mean: float = 0.0) -> None:
        self._mean_of_squares, self._square_of_mean = mean_of_squares, square_of_mean

    def mean_of_squares(self) -> Mapping[str, Tensor]:
        return {"w": torch.tensor([self._mean_of_squares])}

    def square_of_mean(self) -> Mapping[str, Tensor]:
        return {"w": torch.tensor([self._square_of_mean])}


def one_weight(value: float = 0.0) -> dict[str, nn.Parameter]:
    return {"w": nn.Parameter(torch.tensor([value]))}


def step(term: RetentionTerm, gradients: GivenGradients, weight: float, rows: int = 10) -> None:
    term.after_backward(gradients if term.needs_row_gradients else None)
    with torch.no_grad():
        term.parameters["w"].fill_(weight)
    term.after_update(rows)


def penalty(term: RetentionTerm) -> float | None:
    loss = term.loss(NEW, ())
    return loss["penalty"].item() if loss else None


def test_ewc_pp_by_hand() -> None:
    config = EwcPlusPlus.Config(strength=2.0, rate=0.5, max_stiffness=None, fisher_every=1)
    term = EwcPlusPlus(config, one_weight())
    term.on_change(Change.NEW_CLASS)  # the stream's first class: there is no Fisher yet, so no anchor
    assert penalty(term) is None
    step(term, GivenGradients(8.0), weight=1.0)  # F = 4
    assert penalty(term) is None
    step(term, GivenGradients(2.0), weight=3.0)  # F = 1 + 2 = 3
    term.on_change(Change.NEW_CLASS)  # F* = 3, theta* = 3
    assert penalty(term) == 0.0
    step(term, GivenGradients(100.0), weight=5.0)  # F goes on to 51.5; F* stays
    assert penalty(term) == pytest.approx(2.0 / 2 * 3 * (5 - 3) ** 2)
    term.on_change(Change.DRIFT)
    assert penalty(term) == 0.0
    step(term, GivenGradients(0.0), weight=4.0)
    assert penalty(term) == pytest.approx(2.0 / 2 * 51.5)
    term.on_adoption({"w": torch.tensor([5.0])})  # at weight 4
    assert penalty(term) == 0.0
    step(term, GivenGradients(5.0), weight=6.0)  # F goes on from 5
    assert penalty(term) == pytest.approx(2.0 / 2 * 5 * (6 - 4) ** 2)
    term.on_change(Change.DRIFT)
    step(term, GivenGradients(0.0), weight=7.0)
    assert penalty(term) == pytest.approx(2.0 / 2 * 5 * (7 - 6) ** 2)


def test_ewc_pp_batch_mean() -> None:
    term = EwcPlusPlus(EwcPlusPlus.Config(strength=2.0, rate=0.5, fisher="batch_mean", fisher_every=1), one_weight())
    step(term, GivenGradients(8.0, square_of_mean=6.0), weight=1.0)
    term.on_change(Change.DRIFT)
    step(term, GivenGradients(0.0), weight=2.0)
    assert penalty(term) == pytest.approx(3.0)


def test_ewc_pp_anchor_by_records() -> None:
    term = EwcPlusPlus(EwcPlusPlus.Config(strength=2.0, rate=1.0, anchor_every_records=25), one_weight())
    step(term, GivenGradients(1.0), weight=1.0)
    step(term, GivenGradients(1.0), weight=2.0)
    assert penalty(term) is None  # 20 records
    step(term, GivenGradients(1.0), weight=3.0)  # 30: anchored at 3
    assert penalty(term) == 0.0
    step(term, GivenGradients(1.0), weight=4.0)
    assert penalty(term) == pytest.approx(1.0)
    term.on_change(Change.NEW_CLASS)  # anchored at 4, and the count starts anew
    step(term, GivenGradients(1.0), weight=5.0, rows=24)
    assert penalty(term) == pytest.approx(1.0)
    step(term, GivenGradients(1.0), weight=6.0, rows=1)
    assert penalty(term) == 0.0


def running(term: RetentionTerm) -> float:
    return cast(dict[str, Tensor], term.state()["running"])["w"].item()


@pytest.mark.parametrize("every", [1, 3])
def test_ewc_pp_half_life_is_as_documented(every: int) -> None:
    rate = EwcPlusPlus.Config().rate
    batches = math.log(0.5) / math.log(1 - rate)
    assert round(batches) == 693
    assert round(10 * batches) == 6928
    term = EwcPlusPlus(EwcPlusPlus.Config(fisher_every=every), one_weight())
    step(term, GivenGradients(1.0), weight=0.0)
    first = running(term)
    assert first == pytest.approx(1 - (1 - rate) ** every)
    for _ in range(693):
        step(term, GivenGradients(0.0), weight=0.0)
    assert running(term) == pytest.approx(first / 2, rel=1e-3)


def test_every_third_batch_is_looked_at_by_hand() -> None:
    term = EwcPlusPlus(EwcPlusPlus.Config(rate=0.5, fisher_every=3), one_weight())
    step(term, GivenGradients(8.0), weight=0.0)  # a share of 1 - 0.5^3 = 7/8
    assert running(term) == 7.0
    for _ in range(2):
        assert not term.needs_row_gradients
        step(term, GivenGradients(math.nan), weight=0.0)
        assert running(term) == 7.0
    assert term.needs_row_gradients
    step(term, GivenGradients(1.0), weight=0.0)
    assert running(term) == 7.0 / 8 + 7.0 / 8


def test_ewc_by_hand() -> None:
    term = OnlineEwc(OnlineEwc.Config(strength=2.0, gamma=0.5, min_records=20, max_stiffness=None), one_weight())
    step(term, GivenGradients(6.0), weight=1.0, rows=10)
    term.on_change(Change.NEW_CLASS)  # 10 records: too few for an anchor
    assert penalty(term) is None
    step(term, GivenGradients(3.0), weight=2.0, rows=20)  # F_new = (6 * 10 + 3 * 20) / 30 = 4
    term.on_change(Change.NEW_CLASS)  # F* = 4, theta* = 2
    step(term, GivenGradients(7.0), weight=3.0, rows=20)
    assert penalty(term) == pytest.approx(2.0 / 2 * 0.5 * 4)
    term.on_change(Change.DRIFT)  # F* = 0.5 * 4 + 7 = 9, theta* = 3
    assert penalty(term) == 0.0
    step(term, GivenGradients(0.0), weight=1.0)
    assert penalty(term) == pytest.approx(2.0 / 2 * 0.5 * 9 * 4)


def test_cut_stiffness_by_hand() -> None:
    term = EwcPlusPlus(EwcPlusPlus.Config(strength=2.0, rate=1.0, max_stiffness=6.0), one_weight())
    step(term, GivenGradients(100.0), weight=0.0)
    term.on_change(Change.DRIFT)
    step(term, GivenGradients(0.0), weight=2.0)
    assert penalty(term) == pytest.approx(6.0 / 2 * 2**2)
    online = OnlineEwc(OnlineEwc.Config(strength=4.0, gamma=0.5, min_records=1, max_stiffness=6.0), one_weight())
    step(online, GivenGradients(100.0), weight=0.0)
    online.on_change(Change.DRIFT)
    step(online, GivenGradients(0.0), weight=2.0)
    assert penalty(online) == pytest.approx(6.0 / 2 * 2**2)


@pytest.mark.parametrize(("cap", "survives"), [(10.0, True), (None, False)])
def test_the_cut_keeps_descent_from_diverging(cap: float | None, survives: bool) -> None:
    term = EwcPlusPlus(EwcPlusPlus.Config(strength=30.0, rate=1.0, max_stiffness=cap), one_weight())
    step(term, GivenGradients(10.0), weight=0.0)  # strength * F = 300, 2 / learning rate = 20
    term.on_change(Change.DRIFT)
    weight = term.parameters["w"]
    with torch.no_grad():
        weight.fill_(1.0)
    for _ in range(20):
        (force,) = torch.autograd.grad(term.loss(NEW, ())["penalty"], [weight])
        with torch.no_grad():
            weight.sub_(0.1 * force)
    assert (abs(weight.item()) < 1) == survives


def test_batch_mean_is_avalanches_running_importance() -> None:
    """RWalkPlugin starts at the first batch's squares, we at zero: ours lacks (1 - a)^n times the first."""
    RWalkPlugin = require_module("avalanche.training.plugins", extra="avalanche").RWalkPlugin
    from pipeline.row_gradients import RowGradientCapture

    a = 0.3
    random = torch.Generator().manual_seed(3)
    network = nn.Linear(4, 3)
    plugin: Any = RWalkPlugin(ewc_alpha=a)
    term = EwcPlusPlus(
        EwcPlusPlus.Config(rate=a, fisher="batch_mean", fisher_every=1), dict(network.named_parameters())
    )
    capture = RowGradientCapture(network)
    first: Tensor | None = None

    class Strategy:
        model = network

    for _ in range(4):
        x, y = torch.randn(6, 4, generator=random), torch.randint(0, 3, (6,), generator=random)
        capture.start(6, scale=6)
        network.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(network(x), y))
        term.after_backward(capture.finish())
        term.after_update(6)
        plugin._update_importance(Strategy())
        if first is None:
            assert network.weight.grad is not None
            first = network.weight.grad.square()
    assert first is not None
    ours = cast(dict[str, Tensor], term.state()["running"])["weight"]
    torch.testing.assert_close(ours + (1 - a) ** 4 * first, plugin.iter_importance["weight"].data)
