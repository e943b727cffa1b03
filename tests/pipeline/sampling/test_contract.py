"""What holds for every sampling; each is found without being listed.

Legend: N = capacity, B = rows of a batch
"""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.sampling import samplings
from pipeline.sampling.sampling import Sampling, Slots
from pipeline.state import fingerprint, join, split

CAPACITY = 12


class Memory:
    """A bounded memory of numbers that follows what a sampling says."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.column_N = np.zeros(sampling.capacity, dtype=np.int64)
        self.numbers: list[int] = []
        self.seen = 0

    def offer(self, column_B: Slots) -> None:
        before = self.column_N.copy()
        slots_B = self.sampling.slots(column_B, self.column_N, seen=self.seen, filled=len(self.numbers))
        assert np.array_equal(self.column_N, before), "what is held is not the sampling's to change"
        assert slots_B.shape == column_B.shape
        assert (slots_B >= 0).all()
        for row, slot in enumerate(slots_B):
            if slot == len(self.numbers) < self.sampling.capacity:
                self.numbers.append(self.seen + row)
            elif slot < self.sampling.capacity:
                self.numbers[slot] = self.seen + row
            else:
                continue
            self.column_N[slot] = column_B[row]
        self.seen += len(column_B)

    def erase(self, column: int) -> None:
        """All that it holds of this class leaves; the others move together."""
        kept = [place for place in range(len(self.numbers)) if self.column_N[place] != column]
        self.numbers = [self.numbers[place] for place in kept]
        self.column_N[: len(kept)] = self.column_N[kept]


def stream(batches: int, seed: int = 0) -> list[Slots]:
    """Batches of up to five; class c comes from batch 4 c on, and class 0 most often."""
    rng = np.random.default_rng(seed)
    return [
        np.minimum(rng.integers(0, batch // 4 + 1, rng.integers(1, 6)), rng.integers(0, 5, 1))
        for batch in range(batches)
    ]


@pytest.fixture(params=sorted(samplings()))
def kind(request: pytest.FixtureRequest) -> type[Sampling]:
    return samplings()[request.param]


def test_it_fills_from_the_first_slot_on_and_then_stays_full(kind: type[Sampling]) -> None:
    memory = Memory(kind(CAPACITY, 0))
    for column_B in stream(40):
        memory.offer(column_B)
        assert len(memory.numbers) == min(memory.seen, CAPACITY)


def test_the_same_seed_keeps_the_same_and_another_one_others(kind: type[Sampling]) -> None:
    first, again, other = (Memory(kind(CAPACITY, seed)) for seed in (1, 1, 2))
    for column_B in stream(60):
        for memory in (first, again, other):
            memory.offer(column_B)
    assert first.numbers == again.numbers != other.numbers


def test_what_was_erased_makes_room_and_its_class_comes_back(kind: type[Sampling]) -> None:
    memory = Memory(kind(30, 4))
    rng = np.random.default_rng(2)
    for _ in range(40):
        memory.offer(rng.integers(0, 3, 10))
    memory.erase(1)
    left = len(memory.numbers)
    assert 0 < left < 30
    for _ in range(200):
        memory.offer(rng.integers(0, 3, 10))
        assert left <= len(memory.numbers) <= 30
    assert len(memory.numbers) > left  # Algorithm R comes by at a hole as rarely as at any slot
    assert np.bincount(memory.column_N, minlength=3).min() >= 3


@pytest.mark.parametrize("cut", [1, 7, 35])
def test_a_restored_one_goes_on_as_if_nothing_had_happened(kind: type[Sampling], cut: int) -> None:
    straight = Memory(kind(CAPACITY, 3))
    batches = stream(60)
    for column_B in batches[:cut]:
        straight.offer(column_B)
    restored = Memory(kind(CAPACITY, 3))
    tensors, document = split(straight.sampling.state())
    restored.sampling.load_state(join(tensors, document))
    restored.column_N, restored.seen = straight.column_N.copy(), straight.seen
    restored.numbers = list(straight.numbers)
    saved = fingerprint(straight.sampling.state())
    for column_B in batches[cut:]:
        restored.offer(column_B)
    assert fingerprint(straight.sampling.state()) == saved, "what it saved is its own"
    for column_B in batches[cut:]:
        straight.offer(column_B)
    assert restored.numbers == straight.numbers
    assert fingerprint(restored.sampling.state()) == fingerprint(straight.sampling.state())
