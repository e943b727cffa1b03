"""Whose turn an evaluation is: worked out by hand, and over a long course."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.turns import ALL_AT_ONCE, classes_in_turn, periodic_budget

PROPERTY = settings(max_examples=100)

TWELVE = {f"c{number}": 200 for number in range(12)}  # 2,400 samples


def test_all_while_they_are_few() -> None:
    ten = dict(list(TWELVE.items())[:10])
    assert sum(ten.values()) == ALL_AT_ONCE
    assert classes_in_turn(ten, {"c3": 500}, ended=["c3"], budget=0) == list(ten)
    assert classes_in_turn({}, {}, ended=[], budget=2_000) == []


def test_of_many_those_that_have_waited_longest() -> None:
    assert periodic_budget(500) == 2_000
    # never evaluated ones first, in their order; ten of 200 are 2,000
    assert classes_in_turn(TWELVE, {}, ended=[], budget=2_000) == [f"c{number}" for number in range(10)]
    at = dict.fromkeys(list(TWELVE)[:10], 500)
    assert classes_in_turn(TWELVE, at, ended=[], budget=2_000) == [f"c{n}" for n in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11)]
    at = dict.fromkeys(TWELVE, 1000) | {"c7": 400, "c9": 300}
    assert classes_in_turn(TWELVE, at, ended=[], budget=400) == ["c7", "c9"]


def test_the_last_one_may_exceed_the_budget_and_there_is_always_one() -> None:
    assert classes_in_turn(TWELVE, {}, ended=[], budget=201) == ["c0", "c1"]
    assert classes_in_turn(TWELVE, {}, ended=[], budget=4) == ["c0"]
    assert classes_in_turn(TWELVE, {"c0": 7}, ended=["not held out"], budget=0) == ["c1"]


def test_a_burst_that_has_ended_is_measured_now_whatever_else_is_due() -> None:
    at = dict.fromkeys(TWELVE, 500) | {"c11": 900}
    assert classes_in_turn(TWELVE, at, ended=["c11", "not held out"], budget=0) == ["c11"]
    assert classes_in_turn(TWELVE, at, ended=["c11"], budget=400) == ["c0", "c1", "c11"]


@PROPERTY
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=60),
    budget=st.integers(1, 3_000),
    ended=st.lists(st.integers(0, 59), max_size=3),
)
def test_everybody_has_a_turn_before_anybody_has_another(sizes: list[int], budget: int, ended: list[int]) -> None:
    counts = {str(number): size for number, size in enumerate(sizes)}
    at: dict[str, int] = {}
    for now in range(1, len(sizes) + 1):
        turn = classes_in_turn(counts, at, ended=[str(number) for number in ended], budget=budget)
        assert turn
        longest = max((200, *sizes))
        others = [label for label in turn if int(label) not in ended]
        if sum(sizes) > ALL_AT_ONCE:
            assert sum(counts[label] for label in others) < budget + longest
            waited = [at.get(label, 0) for label in counts if label not in turn]
            assert all(at.get(label, 0) <= min(waited, default=now) for label in others)
        at |= dict.fromkeys(turn, now)
    assert at.keys() == counts.keys()
