"""Legend: N = capacity, B = rows of a batch, K = logit columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import keyed_randomness
from pipeline.reservoir import UNKNOWN_SUBJECT, Reservoir, subjects_of, without_rows
from pipeline.sample import InputSpec
from pipeline.state import fingerprint, join, split
from pipeline.user_error import UserError

CPU = torch.device("cpu")
SPEC = InputSpec(kind="vector", shape=(1,))


def rows(first: int, count: int, columns: int = 2) -> tuple[torch.Tensor, npt.NDArray[np.int64], torch.Tensor]:
    """Rows whose value, label and logits all say which row of the stream they are."""
    number_B = torch.arange(first, first + count)
    return number_B[:, None].float(), number_B.numpy(), number_B[:, None].float().expand(count, columns) + 0.5


def fill(reservoir: Reservoir, count: int, batch: int, columns: int = 2) -> None:
    for first in range(0, count, batch):
        size = min(batch, count - first)
        subjects_B = np.arange(first, first + size) % 3 + 1
        reservoir.insert(*rows(first, size, columns), columns, subjects_B)


def erase(reservoir: Reservoir, subject: int) -> Reservoir:
    """Another one that goes on without these rows; `fill` gives row t of the stream the subject t % 3 + 1."""
    state = reservoir.state()
    other = Reservoir(
        reservoir.capacity, SPEC, seed=reservoir._sampling.keyed_generator.seed, device=CPU, sampling="uniform"
    )
    other.load_state(without_rows(state, subjects_of(state) == subject))
    return other


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
    monkeypatch.setattr(keyed_randomness.KeyedGenerator, "__call__", lambda *_: ScriptedGenerator([0, 1, 1, 3, 0, 1]))
    reservoir = Reservoir(2, SPEC, seed=0, device=CPU, sampling="uniform")
    reservoir.insert(*rows(0, 6), 2)
    assert held(reservoir) == [4, 5]
    assert reservoir.seen == 6
    kept = reservoir.rows(torch.tensor([1, 0]))
    assert kept.x.tolist() == [[5.0], [4.0]]
    assert kept.logits_BK.tolist() == [[5.5, 5.5], [4.5, 4.5]]


def test_the_same_rows_stay_as_one_by_one_in_a_loop() -> None:
    """An independent implementation: one sample after the other, with the draws of its batch."""
    reservoir = Reservoir(7, SPEC, seed=3, device=CPU, sampling="uniform")
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
        reservoir = Reservoir(capacity, SPEC, seed=seed, device=CPU, sampling="uniform")
        fill(reservoir, samples, batch=7)
        kept = held(reservoir)
        assert len(set(kept)) == capacity
        counts[kept] += 1
    p = capacity / samples
    statistic = ((counts - runs * p) ** 2).sum() / (runs * p * (1 - p)) * (samples - 1) / samples
    assert 0.001 < chi_square_cdf(statistic, samples - 1) < 0.999


def test_draws_are_without_replacement_and_uniform() -> None:
    reservoir = Reservoir(30, SPEC, seed=0, device=CPU, sampling="uniform")
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
    reservoir = Reservoir(4, SPEC, seed=0, device=CPU, sampling="uniform")
    reservoir.insert(*rows(0, 2, columns=2), 2)
    reservoir.grow(4)
    reservoir.insert(*rows(2, 2, columns=4), 4)
    kept = reservoir.rows(torch.arange(4))
    assert kept.logits_BK.tolist() == [[0.5, 0.5, 0, 0], [1.5, 1.5, 0, 0], [2.5] * 4, [3.5] * 4]
    assert kept.columns_B is not None
    assert kept.columns_B.tolist() == [2, 2, 4, 4]
    assert reservoir.counts_per_column().tolist() == [1, 1, 1, 1]


def test_rows_are_copies_in_the_raw_dtype() -> None:
    spec = InputSpec(kind="image", shape=(1, 2, 2))
    reservoir = Reservoir(3, spec, seed=0, device=CPU, sampling="uniform")
    x = torch.full((2, 1, 2, 2), 200, dtype=torch.uint8)
    reservoir.insert(x, np.array([0, 1]), torch.zeros(2, 3), 3)
    x.fill_(0)
    taken = reservoir.rows(torch.tensor([0])).x
    assert taken.dtype == torch.uint8
    assert taken.flatten().tolist() == [200] * 4


@pytest.mark.parametrize("before", [3, 10, 41])
def test_a_restored_reservoir_goes_on_as_if_nothing_had_happened(before: int) -> None:
    straight, cut, restored = (Reservoir(10, SPEC, seed=5, device=CPU, sampling="uniform") for _ in range(3))
    fill(straight, before, batch=4)
    fill(cut, before, batch=4)
    restored.load_state(join(*split(cut.state())))
    for reservoir in (straight, restored):
        reservoir.insert(*rows(before, 30), 2)
    assert fingerprint(straight.state()) == fingerprint(restored.state())


@pytest.mark.parametrize("sampling", ["uniform", "class_balanced"])
def test_the_cpu_knows_which_classes_are_held(sampling: str) -> None:
    """Through insertions, erasures and restarts."""
    reservoir = Reservoir(10, SPEC, seed=5, device=CPU, sampling=sampling)
    for first in range(0, 60, 6):
        x, y_B, logits_BK = rows(first, 6)
        reservoir.insert(x, y_B % 4, logits_BK, 2, np.arange(first, first + 6) % 3 + 1)
        state = reservoir.state()
        if first == 30:
            reservoir = Reservoir(10, SPEC, seed=5, device=CPU, sampling=sampling)
            reservoir.load_state(without_rows(state, subjects_of(state) == 2))
        y = reservoir.rows(torch.arange(reservoir.filled)).y_B
        assert reservoir._held_N[: reservoir.filled].tolist() == y.tolist()
        assert reservoir.counts_per_column().tolist()[:4] == np.bincount(y.numpy(), minlength=4).tolist()


def test_state_of_another_sampling_is_refused() -> None:
    state = Reservoir(10, SPEC, seed=0, device=CPU, sampling="uniform").state()
    other = Reservoir(10, SPEC, seed=0, device=CPU, sampling="class_balanced")
    with pytest.raises(UserError, match=r"sampled 'uniform', replay\.sampling is 'class_balanced'"):
        other.load_state(state)
    older = {name: value for name, value in state.items() if name not in ("sampling", "sampled")}
    Reservoir(10, SPEC, seed=0, device=CPU, sampling="uniform").load_state(older)


def test_state_of_another_capacity_is_refused() -> None:
    reservoir = Reservoir(10, SPEC, seed=0, device=CPU, sampling="uniform")
    fill(reservoir, 25, batch=5)
    for capacity in (5, 20):
        with pytest.raises(UserError, match=f"does not fit replay.capacity {capacity}"):
            Reservoir(capacity, SPEC, seed=0, device=CPU, sampling="uniform").load_state(reservoir.state())


def test_erased_rows_leave_and_the_others_move_together() -> None:
    reservoir = Reservoir(10, SPEC, seed=0, device=CPU, sampling="uniform")
    fill(reservoir, 8, batch=4)
    left = erase(reservoir, 2)  # 1, 4, 7
    assert held(left) == [0, 2, 3, 5, 6]
    assert (left.seen, left.filled, left.state()["holes"]) == (8, 5, 3)
    kept = left.rows(torch.arange(5))
    assert kept.x.flatten().tolist() == [0.0, 2.0, 3.0, 5.0, 6.0]
    assert kept.logits_BK[:, 0].tolist() == [0.5, 2.5, 3.5, 5.5, 6.5]
    assert subjects_of(left.state()).tolist() == [1, 3, 1, 3, 1]
    assert held(reservoir) == list(range(8)), "the state it came from is as it was"


def test_samples_that_draw_a_hole_go_behind_the_rows_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    # Capacity 6, rows 0..5 there, 1 and 4 erased: 0 2 3 5 in slots 0..3, holes 4 and 5. Of samples 6..11: 6 draws the
    # hole 5 and goes to slot 4; 7 draws 4, which holds 6 by now, and replaces it; 8 draws the hole 5 and goes there;
    # 9 draws 5 and replaces 8; 10 draws 1 and replaces 2; 11 draws 9 and is dropped.
    reservoir = Reservoir(6, SPEC, seed=0, device=CPU, sampling="uniform")
    fill(reservoir, 6, batch=6)
    reservoir = erase(reservoir, 2)
    monkeypatch.setattr(keyed_randomness.KeyedGenerator, "__call__", lambda *_: ScriptedGenerator([5, 4, 5, 5, 1, 9]))
    reservoir.insert(*rows(6, 6), 2)
    assert held(reservoir) == [0, 10, 3, 5, 7, 9]
    assert (reservoir.filled, reservoir.state()["holes"]) == (6, 0)


@given(
    batches=st.lists(st.integers(1, 9), min_size=1, max_size=25), cut=st.integers(0, 24), capacity=st.integers(1, 12)
)
@settings(max_examples=100)
def test_with_holes_too_the_rows_are_those_of_one_by_one_in_a_loop(batches: list[int], cut: int, capacity: int) -> None:
    reservoir = Reservoir(capacity, SPEC, seed=3, device=CPU, sampling="uniform")
    slots: list[int] = []
    first = 0
    for number, size in enumerate(batches):
        if number == cut:
            reservoir = erase(reservoir, 1)
            slots = [t for t in slots if t % 3 != 0]
        drawn = keyed_randomness.generator(3, "reservoir", first).integers(0, np.arange(first, first + size) + 1)
        for t in range(first, first + size):
            slot = t if t < capacity else int(drawn[t - first])
            if slot < len(slots):
                slots[slot] = t
            elif slot < capacity:
                slots.append(t)
        reservoir.insert(*rows(first, size), 2, np.arange(first, first + size) % 3 + 1)
        first += size
        assert held(reservoir) == slots


def test_what_was_not_erased_stays_kept_equally_often() -> None:
    """As without an erasure: with probability N / n each, those before the erasure and those after it. Of the n counts
    the m that were not erased have the same variances and covariances as if nothing had been: the statistic over them
    is chi-square with m - 1 degrees of freedom, but for a share of 1 - m / n of one more."""
    capacity, samples, erased_at, runs = 20, 150, 63, 300
    counts = np.zeros(samples)
    for seed in range(runs):
        reservoir = Reservoir(capacity, SPEC, seed=seed, device=CPU, sampling="uniform")
        fill(reservoir, erased_at, batch=7)
        reservoir = erase(reservoir, 1)
        for first in range(erased_at, samples, 7):
            size = min(7, samples - first)
            reservoir.insert(*rows(first, size), 2)
        kept = held(reservoir)
        assert len(set(kept)) == reservoir.filled
        counts[kept] += 1
    was_erased = (np.arange(samples) < erased_at) & (np.arange(samples) % 3 == 0)
    assert not counts[was_erased].any()
    left = counts[~was_erased]
    p = capacity / samples
    statistic = ((left - runs * p) ** 2).sum() / (runs * p * (1 - p)) * (samples - 1) / samples
    assert 0.001 < chi_square_cdf(statistic, len(left) - 1) < 0.999
    before, after = counts[:erased_at][~was_erased[:erased_at]].mean(), counts[erased_at:].mean()
    assert before == pytest.approx(runs * p, rel=0.06)  # 42 and 87 counts of about 40: 2.5 % and 1.7 % standard error
    assert after == pytest.approx(runs * p, rel=0.06)


def test_a_reservoir_of_which_all_was_erased_gives_nothing_and_fills_again() -> None:
    reservoir = Reservoir(4, SPEC, seed=0, device=CPU, sampling="uniform")
    number_B = np.full(3, 7)
    reservoir.insert(*rows(0, 3), 2, number_B)
    reservoir = erase(reservoir, 7)
    assert (reservoir.filled, held(reservoir)) == (0, [])
    assert reservoir.draw(5, keyed_randomness.generator(0, "draw")).tolist() == []
    assert reservoir.counts_per_column().tolist() == [0, 0]
    reservoir.insert(*rows(3, 1), 2)
    assert held(reservoir) == [3]


@pytest.mark.parametrize("before", [6, 41])
def test_a_restored_reservoir_with_holes_goes_on_as_if_nothing_had_happened(before: int) -> None:
    straight, restored = (Reservoir(10, SPEC, seed=5, device=CPU, sampling="uniform") for _ in range(2))
    fill(straight, before, batch=4)
    straight = erase(straight, 3)
    restored.load_state(join(*split(straight.state())))
    for reservoir in (straight, restored):
        reservoir.insert(*rows(before, 30), 2)
    assert fingerprint(straight.state()) == fingerprint(restored.state())


def test_state_of_another_capacity_is_refused_with_holes_too() -> None:
    reservoir = Reservoir(10, SPEC, seed=0, device=CPU, sampling="uniform")
    fill(reservoir, 25, batch=5)
    left = erase(reservoir, 1)
    for capacity in (5, left.filled, 20):
        with pytest.raises(UserError, match=f"does not fit replay.capacity {capacity}"):
            Reservoir(capacity, SPEC, seed=0, device=CPU, sampling="uniform").load_state(left.state())


def test_state_of_a_release_without_subjects_loads() -> None:
    reservoir, loaded = (Reservoir(10, SPEC, seed=0, device=CPU, sampling="uniform") for _ in range(2))
    fill(reservoir, 25, batch=5)
    state = {name: value for name, value in reservoir.state().items() if name not in ("subjects", "holes")}
    loaded.load_state(state)
    assert held(loaded) == held(reservoir)
    assert subjects_of(state).tolist() == subjects_of(loaded.state()).tolist() == [UNKNOWN_SUBJECT] * 10
