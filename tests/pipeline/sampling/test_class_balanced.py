"""By hand, against an independent loop, and by counting.

Legend: N = capacity
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline import keyed_randomness
from pipeline.sampling.class_balanced import ClassBalanced
from tests.pipeline.sampling.test_contract import Memory, stream


class ScriptedGenerator:
    """Stands in for the keyed generator: `random` says what the test wrote down."""

    def __init__(self, drawn: list[tuple[float, float, float]]) -> None:
        self._drawn = np.array(drawn)

    def random(self, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
        assert self._drawn.shape == shape
        return self._drawn


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Capacity 3; classes 0 0 0 1 1 0 2, three draws each: (of the largest, whether, where).
    drawn = [
        (0.9, 0.9, 0.9),  # 0 takes slot 0
        (0.9, 0.9, 0.9),  # 0 takes slot 1
        (0.9, 0.9, 0.9),  # 0 takes slot 2
        (0.0, 0.9, 0.5),  # class 0 is the largest, so full; 1 never was: it takes a slot of class 0, of (0, 1, 2) the 1
        (0.0, 0.9, 0.6),  # class 0 has two of three; 1 was never largest: of slots (0, 2) the 2
        (0.9, 0.26, 0.0),  # now 1 is the largest (full from here on); class 0 is full, 1 of 4: 0.26 is not below 1/4
        (0.0, 0.0, 0.9),  # 2 was never largest; the largest is class 1: of its slots (1, 2) the 2
    ]
    monkeypatch.setattr(keyed_randomness.KeyedGenerator, "__call__", lambda *_: ScriptedGenerator(drawn))
    memory = Memory(ClassBalanced(3, seed=0))
    memory.offer(np.array([0, 0, 0, 1, 1, 0, 2]))
    assert memory.numbers == [0, 3, 6]
    assert memory.column_N.tolist() == [0, 1, 2]
    state = memory.sampling.state()
    assert isinstance(state["came"], torch.Tensor)
    assert isinstance(state["was_full"], torch.Tensor)
    assert state["came"].tolist() == [4, 2, 1]
    assert state["was_full"].tolist() == [True, True, False]


def test_a_full_class_takes_in_a_sample_with_its_share_of_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [(0.9, 0.9, 0.9)] * 2 + [(0.9, 0.66, 0.7)]  # the third of its class: 2 held of 3, and 0.66 is below 2/3
    monkeypatch.setattr(keyed_randomness.KeyedGenerator, "__call__", lambda *_: ScriptedGenerator(drawn))
    memory = Memory(ClassBalanced(2, seed=0))
    memory.offer(np.array([0, 0, 0]))
    assert memory.numbers == [0, 2]


def test_it_is_the_papers_algorithm_one_by_one() -> None:
    """Written anew from the paper's pseudo-code, on lists, with the same draws."""
    capacity = 9
    memory = Memory(ClassBalanced(capacity, seed=5))
    held: list[tuple[int, int]] = []  # (class, number)
    full: set[int] = set()
    came: dict[int, int] = {}
    for column_B in stream(120, seed=4):
        drawn_B3 = keyed_randomness.generator(5, "reservoir", memory.seen).random((len(column_B), 3))
        for row, c in enumerate(column_B.tolist()):
            number = memory.seen + row
            came[c] = came.get(c, 0) + 1
            if len(held) < capacity:
                held.append((c, number))
                continue  # nothing was full before
            sizes = {other: sum(h == other for h, _ in held) for other in came}
            largest = [other for other in sorted(sizes) if sizes[other] == max(sizes.values())]
            full.update(largest)
            if c not in full:
                victim = largest[int(drawn_B3[row, 0] * len(largest))]
            elif drawn_B3[row, 1] < sizes[c] / came[c]:
                victim = c
            else:
                continue
            places = [place for place, (h, _) in enumerate(held) if h == victim]
            held[places[int(drawn_B3[row, 2] * len(places))]] = (c, number)
        memory.offer(column_B)
        assert memory.numbers == [number for _, number in held]


def test_a_stream_with_classes_a_hundred_times_as_frequent_is_kept_in_balance() -> None:
    memory = Memory(ClassBalanced(60, seed=1))
    rng = np.random.default_rng(0)
    for _ in range(800):
        memory.offer(rng.choice(3, 10, p=[0.9, 0.09, 0.01]))
    assert np.bincount(memory.column_N).tolist() == [20, 20, 20]


def test_after_an_erasure_the_class_has_its_share_again() -> None:
    memory = Memory(ClassBalanced(100, seed=0))
    rng = np.random.default_rng(0)
    for _ in range(100):
        memory.offer(rng.integers(0, 5, 10))
    memory.erase(3)
    for _ in range(2_000):
        memory.offer(rng.integers(0, 5, 10))
    assert np.bincount(memory.column_N, minlength=5).min() >= 15


def test_with_more_classes_than_slots_none_is_shut_out_for_ever() -> None:
    memory = Memory(ClassBalanced(10, seed=0))
    rng = np.random.default_rng(0)
    held: set[int] = set()
    for _ in range(300):
        memory.offer(rng.integers(0, 20, 10))
        held |= set(memory.column_N.tolist())
    assert held == set(range(20))


def test_within_a_class_every_sample_is_kept_equally_often() -> None:
    """Of 40 samples of class 0 among 40 of class 1 ten are kept: each with p = 1/4. Counts over R runs have variance
    R p (1 - p) and covariance -R p (1 - p) / 39: the statistic is chi-square with 39 degrees of freedom."""
    counts, runs = np.zeros(40), 400
    for seed in range(runs):
        memory = Memory(ClassBalanced(20, seed=seed))
        for first in range(0, 80, 8):
            memory.offer(np.arange(first, first + 8) % 2)
        kept = [number // 2 for number in memory.numbers if number % 2 == 0]
        assert len(set(kept)) == len(kept) == 10
        counts[kept] += 1
    statistic = ((counts - runs / 4) ** 2).sum() / (runs * 0.25 * 0.75) * 39 / 40
    assert 15.0 < statistic < 75.0  # the 0.01 % and 99.96 % points
