from __future__ import annotations

import numpy as np
import pytest

from pipeline.user_error import UserError
from producers.pools import apportioned, pools_of
from tests.producers.made_datasets import TellingDataset


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (10, [1, 1], [5, 5]),
        (10, [2, 1, 1], [5, 3, 2]),  # 5, 2.5, 2.5: the first of equal remainders gets the one that is left
        (7, [1, 1, 1], [3, 2, 2]),
        (3, [100, 1, 1], [1, 1, 1]),  # 2.94, 0.03, 0.03 would leave two classes out
        (2, [1, 1, 5], [0, 0, 2]),  # fewer records than classes: 0.29, 0.29, 1.43; the largest remainder is the last
        (200, [1000, 500], [133, 67]),
    ],
)
def test_apportioned_by_hand(total: int, weights: list[float], expected: list[int]) -> None:
    counts = apportioned(total, weights)
    assert counts == expected
    assert sum(counts) == total


def test_steps_in_order_and_the_last_one_smaller() -> None:
    pools, items = pools_of(TellingDataset({"a": 2, "b": 1, "c": 3}), classes_per_step=2)
    assert pools.names == ("a", "b", "c")
    assert pools.sizes == (2, 1, 3)
    assert pools.steps == ((0, 1), (2,))
    assert [pool.tolist() for pool in items] == [[0, 1], [2], [3, 4, 5]]


def test_shuffled_classes_are_another_order_of_the_same_and_repeatable() -> None:
    dataset = TellingDataset({str(k): 1 for k in range(10)})
    orders = [pools_of(dataset, shuffle_classes=True, seed=seed)[0].in_order for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert len({orders[0], orders[2], tuple(range(10))}) == 3
    assert sorted(orders[0]) == list(range(10))


def test_a_data_set_with_steps_of_its_own_keeps_them() -> None:
    dataset = TellingDataset({"a": 4, "b": 2})  # labels 0 0 0 0 1 1
    dataset.steps = np.array([1, 0, 0, 1, 1, 1])
    pools, items = pools_of(dataset, classes_per_step=7)
    assert pools.names == ("a", "a", "b")
    assert pools.steps == ((0,), (1, 2))
    assert [pool.tolist() for pool in items] == [[1, 2], [0, 3], [4, 5]]
    with pytest.raises(UserError, match="order of its own"):
        pools_of(dataset, shuffle_classes=True)


def test_no_class_in_a_step_is_refused() -> None:
    with pytest.raises(UserError, match="--classes-per-step 0"):
        pools_of(TellingDataset({"a": 1}), classes_per_step=0)
