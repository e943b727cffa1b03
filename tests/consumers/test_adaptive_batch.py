"""How many requests are answered together, against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.adaptive_batch import AdaptiveBatch

FIXED, EACH = 0.010, 0.001  # seconds: of a turn, and of each of its requests


def batch(most: int = 512, bound_seconds: float = 0.250) -> AdaptiveBatch:
    return AdaptiveBatch(bound_seconds=bound_seconds, most=most)


def taught(under: AdaptiveBatch, *sizes: int, fixed: float = FIXED, each: float = EACH) -> AdaptiveBatch:
    for size in sizes:
        under.took(size, fixed + each * size)
    return under


def test_the_limit_leaves_half_of_the_bound_to_a_turn() -> None:
    """(250 ms / 2 - 10 ms) / 1 ms"""
    under = taught(batch(bound_seconds=0.2501), 1, 100)  # a little more, so that rounding does not take one away
    assert under.limit == 115
    assert under.fitted == pytest.approx((FIXED, EACH))
    assert taught(under, 3, 32, 115, 115, 7).limit == 115


@pytest.mark.parametrize(("most", "limit"), [(512, 32), (8, 8), (1, 1)])
def test_before_the_first_turn_it_is_a_guess(most: int, limit: int) -> None:
    assert batch(most).limit == limit


def test_turns_of_one_size_are_half_fixed() -> None:
    """20 requests took 30 ms: 15 ms, and 0.75 ms each; (125 - 15) / 0.75 = 146.7"""
    under = taught(batch(), *[20] * 10)
    assert under.fitted == pytest.approx((0.015, 0.00075))
    assert under.limit == 146


def test_turns_of_one_size_that_take_half_of_the_bound_stay_at_it() -> None:
    under = taught(batch(bound_seconds=0.100), *[40] * 10)  # 50 ms
    assert under.limit in (39, 40)


def test_a_slow_turn_is_forgotten() -> None:
    """A broker that was elected anew: 5 s once. While it counts less are taken together, in the end as many again."""
    under = taught(batch(), *[20, 60] * 20)
    before = under.limit
    under.took(60, 5.0)
    assert under.limit < before
    turns = 0
    while abs(under.limit - before) > 5:
        taught(under, 20, max(1, under.limit))
        turns += 2
        assert turns < 400
    assert turns > 2


def test_a_network_that_became_slower_is_followed() -> None:
    under = taught(batch(), *[20, 60] * 20)
    taught(under, *[10, 20] * 100, each=0.004)
    assert under.limit in (28, 29)  # (125 - 10) / 4 = 28.75


def test_one_alone_is_answered_however_long_it_takes() -> None:
    assert taught(batch(), 1, 1, fixed=3.0).limit == 1
    assert taught(batch(), 1, 50, fixed=3.0).limit == 1
    assert taught(batch(), 1, 50, fixed=0.0, each=2.0).limit == 1


def test_where_size_costs_nothing_it_is_the_most() -> None:
    assert taught(batch(300), 1, 50, each=0.0).limit == 300
    under = batch(300)
    under.took(1, 0.1)
    under.took(50, 0.01)  # larger, and quicker
    assert under.limit == 300


@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 1e6)), max_size=60),
    st.floats(1e-6, 1e3),
    st.integers(1, 100_000),
)
def test_it_is_never_below_one_nor_above_the_most(
    turns: list[tuple[int, float]], bound_seconds: float, most: int
) -> None:
    under = batch(most, bound_seconds)
    for requests, seconds in turns:
        under.took(requests, seconds)
        assert 1 <= under.limit <= most
