"""Legend: N = capacity, B = rows of a batch, K = logit columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline import keyed_randomness
from pipeline.reservoir import Reservoir
from pipeline.sample import InputSpec
from pipeline.state import fingerprint, join, split
from pipeline.user_error import UserError

CPU = torch.device("cpu")
SPEC = InputSpec(kind="vector", shape=(1,))


def rows(first: int, count: int, columns: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows whose value, label and logits all say which row of the stream they are."""
    number_B = torch.arange(first, first + count)
    return number_B[:, None].float(), number_B, number_B[:, None].float().expand(count, columns) + 0.5


def fill(reservoir: Reservoir, count: int, batch: int, columns: int = 2) -> None:
    for first in range(0, count, batch):
        size = min(batch, count - first)
        reservoir.insert(*rows(first, size, columns), columns)


def held(reservoir: Reservoir) -> list[int]:
    return [int(value) for value in reservoir.rows(torch.arange(reservoir.filled)).y_B]


def chi_square_cdf(statistic: float, freedom: int) -> float:
    halves = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammainc(halves[0], halves[1]))


class ScriptedGenerator:
    """Stands in for the keyed generator: `integers` says what the test wrote down."""

    def __init__(self, drawn: list[int]) -> None:
        self._drawn = np.array(drawn)

    def integers(self, low: int, high: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert low == 0
        assert (self._drawn < high).all()
        return self._drawn


def test_algorithm_r_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # capacity 2, samples 0..5: 0 and 1 take slots 0 and 1; 2 draws 1 and replaces slot 1; 3 draws 3 and is dropped;
    # 4 draws 0 and replaces slot 0; 5 draws 1 and replaces slot 1, which 2 had just taken: the last write stays
    monkeypatch.setattr(keyed_randomness, "generator", lambda *_: ScriptedGenerator([0, 1, 1, 3, 0, 1]))
    reservoir = Reservoir(2, SPEC, seed=0, device=CPU)
    reservoir.insert(*rows(0, 6), 2)
    assert held(reservoir) == [4, 5]
    assert reservoir.seen == 6
    kept = reservoir.rows(torch.tensor([1, 0]))
    assert kept.x.tolist() == [[5.0], [4.0]]
    assert kept.logits_BK.tolist() == [[5.5, 5.5], [4.5, 4.5]]


def test_the_same_rows_stay_as_one_by_one_in_a_loop() -> None:
    """An independent implementation: one sample after the other, with the draws of its batch."""
    reservoir = Reservoir(7, SPEC, seed=3, device=CPU)
    slots: list[int] = []
    for first in range(0, 90, 6):
        drawn = keyed_randomness.generator(3, "reservoir", first).integers(0, np.arange(first, first + 6) + 1)
        for t in range(first, first + 6):
            if t < 7:
                slots.append(t)
            elif drawn[t - first] < 7:
                slots[drawn[t - first]] = t
    fill(reservoir, 90, batch=6)
    assert held(reservoir) == slots


def test_every_sample_of_the_stream_is_kept_equally_often() -> None:
    """In R independent runs each of n samples is kept with p = N / n. Counts have variance R p (1 - p) and, as they
    add up to R N, covariance -R p (1 - p) / (n - 1): the statistic is chi-square with n - 1 degrees of freedom."""
    capacity, samples, runs = 20, 150, 300
    counts = np.zeros(samples)
    for seed in range(runs):
        reservoir = Reservoir(capacity, SPEC, seed=seed, device=CPU)
        fill(reservoir, samples, batch=7)
        kept = held(reservoir)
        assert len(set(kept)) == capacity
        counts[kept] += 1
    p = capacity / samples
    statistic = ((counts - runs * p) ** 2).sum() / (runs * p * (1 - p)) * (samples - 1) / samples
    assert 0.001 < chi_square_cdf(statistic, samples - 1) < 0.999


def test_draws_are_without_replacement_and_uniform() -> None:
    reservoir = Reservoir(30, SPEC, seed=0, device=CPU)
    fill(reservoir, 12, batch=5)
    assert sorted(reservoir.draw(50, keyed_randomness.generator(0, "draw"))) == list(range(12))
    fill(reservoir, 60, batch=5)
    counts = np.zeros(30)
    for number in range(600):
        drawn = reservoir.draw(6, keyed_randomness.generator(0, "draw", number))
        assert len(set(drawn.tolist())) == 6
        counts[drawn] += 1
    statistic = ((counts - 120) ** 2).sum() / (600 * 0.2 * 0.8) * 29 / 30
    assert 0.001 < chi_square_cdf(statistic, 29) < 0.999


def test_stored_logits_are_zero_in_columns_that_came_later() -> None:
    reservoir = Reservoir(4, SPEC, seed=0, device=CPU)
    reservoir.insert(*rows(0, 2, columns=2), 2)
    reservoir.grow(4)
    reservoir.insert(*rows(2, 2, columns=4), 4)
    kept = reservoir.rows(torch.arange(4))
    assert kept.logits_BK.tolist() == [[0.5, 0.5, 0, 0], [1.5, 1.5, 0, 0], [2.5] * 4, [3.5] * 4]
    assert kept.columns_B.tolist() == [2, 2, 4, 4]
    assert reservoir.counts_per_column().tolist() == [1, 1, 1, 1]


def test_rows_are_copies_in_the_raw_dtype() -> None:
    spec = InputSpec(kind="image", shape=(1, 2, 2))
    reservoir = Reservoir(3, spec, seed=0, device=CPU)
    x = torch.full((2, 1, 2, 2), 200, dtype=torch.uint8)
    reservoir.insert(x, torch.tensor([0, 1]), torch.zeros(2, 3), 3)
    x.fill_(0)
    taken = reservoir.rows(torch.tensor([0])).x
    assert taken.dtype == torch.uint8
    assert taken.flatten().tolist() == [200] * 4


@pytest.mark.parametrize("before", [3, 10, 41])
def test_a_restored_reservoir_goes_on_as_if_nothing_had_happened(before: int) -> None:
    straight, cut, restored = (Reservoir(10, SPEC, seed=5, device=CPU) for _ in range(3))
    fill(straight, before, batch=4)
    fill(cut, before, batch=4)
    restored.load_state(join(*split(cut.state())))
    for reservoir in (straight, restored):
        reservoir.insert(*rows(before, 30), 2)
    assert fingerprint(straight.state()) == fingerprint(restored.state())


def test_state_of_another_capacity_is_refused() -> None:
    reservoir = Reservoir(10, SPEC, seed=0, device=CPU)
    fill(reservoir, 25, batch=5)
    for capacity in (5, 20):
        with pytest.raises(UserError, match=f"does not fit replay.capacity {capacity}"):
            Reservoir(capacity, SPEC, seed=0, device=CPU).load_state(reservoir.state())
