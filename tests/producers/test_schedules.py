"""Every schedule by what defines it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.user_error import UserError
from producers.pools import Pools
from producers.schedules import class_schedules, open_schedule
from producers.schedules.drifting import Drifting, degrees, pairs, part_lengths, published_batches, published_part

TEN = Pools(
    names=tuple("0123456789"),
    sizes=(100, 90, 80, 110, 120, 100, 70, 130, 100, 100),
    steps=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)),
)
LETTERS = Pools(names=("a", "b", "c"), sizes=(4, 2, 3), steps=((0, 1), (2,)))


def counts(pool_N: npt.NDArray[np.int64], pools: Pools) -> list[int]:
    return [int((pool_N == pool).sum()) for pool in range(len(pools.sizes))]


def test_the_five_schedules_are_found() -> None:
    assert set(class_schedules()) == {"split", "blurred", "recurring", "long-tail", "drifting"}


@pytest.mark.parametrize("name", class_schedules())
class TestEverySchedule:
    def test_is_repeatable_and_differs_by_seed(self, name: str) -> None:
        schedule = open_schedule(name)
        first, again, other = (schedule.plan(TEN, None, seed) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first.pool_N, again.pool_N)
        np.testing.assert_array_equal(first.step_N, again.step_N)
        assert not np.array_equal(first.pool_N, other.pool_N)

    @pytest.mark.parametrize("records", [1, 7, 100, 5_000])
    def test_makes_as_many_as_it_is_asked_for(self, name: str, records: int) -> None:
        plan = open_schedule(name).plan(TEN, records, 0)
        assert len(plan) == len(plan.step_N) == records
        assert plan.pool_N.min() >= 0
        assert plan.pool_N.max() < 10

    @pytest.mark.parametrize("pools", [Pools(names=("a", "b"), sizes=(1, 1), steps=((0, 1),)), LETTERS])
    def test_takes_tiny_data_sets(self, name: str, pools: Pools) -> None:
        assert set(open_schedule(name).plan(pools, None, 0).pool_N.tolist()) == set(range(len(pools.sizes)))

    def test_has_its_say_in_the_documentation(self, name: str) -> None:
        assert class_schedules()[name].__doc__


class TestSplit:
    def test_each_step_holds_its_classes_and_no_others(self) -> None:
        plan = open_schedule("split").plan(TEN, None, 0)
        assert counts(plan.pool_N, TEN) == list(TEN.sizes)
        assert (np.diff(plan.step_N) >= 0).all()
        for step, classes in enumerate(TEN.steps):
            assert set(plan.pool_N[plan.step_N == step].tolist()) == set(classes)

    def test_is_mixed_within_a_step(self) -> None:
        plan = open_schedule("split").plan(TEN, None, 0)
        first_half = plan.pool_N[:95]  # of the 100 + 90 draws of step 0
        assert 35 <= int((first_half == 0).sum()) <= 65  # 50 expected, standard deviation 3.5

    def test_fewer_records_keep_the_proportions(self) -> None:
        plan = open_schedule("split").plan(LETTERS, 3, 0)  # 9 items: a third of each is 1.33, 0.67, 1
        assert counts(plan.pool_N, LETTERS) == [1, 1, 1]
        assert plan.step_N.tolist() == [0, 0, 1]


class TestBlurred:
    pools = Pools(names=("a", "b", "c"), sizes=(20_000, 20_000, 40_000), steps=((0,), (1,), (2,)))

    def test_every_draw_of_the_split_is_still_there(self) -> None:
        assert counts(open_schedule("blurred").plan(TEN, None, 0).pool_N, TEN) == list(TEN.sizes)

    def test_the_next_steps_share_rises_linearly_over_the_window(self) -> None:
        pool_N = open_schedule("blurred", blur=0.5).plan(self.pools, None, 0).pool_N
        # Around each border half of the shorter step beside it, so 10,000: 15,000 to 25,000, and 35,000 to 45,000.
        for border, after in ((20_000, 1), (40_000, 2)):
            window = pool_N[border - 5_000 : border + 5_000] == after
            shares = window.reshape(10, 1_000).mean(axis=1)
            # Standard error of a share over 1,000 records: 0.016 at most.
            np.testing.assert_allclose(shares, np.arange(0.05, 1.0, 0.1), atol=0.06)
        assert (pool_N[:15_000] == 0).all()
        assert (pool_N[25_000:35_000] == 1).all()
        assert (pool_N[45_000:] == 2).all()

    def test_no_blur_is_split(self) -> None:
        split = open_schedule("split").plan(TEN, None, 5)
        blurred = open_schedule("blurred", blur=0.0).plan(TEN, None, 5)
        np.testing.assert_array_equal(split.pool_N, blurred.pool_N)

    def test_full_blur_mixes_all_the_way_but_never_past_the_next_step(self) -> None:
        plan = open_schedule("blurred", blur=1.0).plan(TEN, None, 0)
        first, last = ([int(np.flatnonzero(plan.step_N == step)[end]) for step in range(5)] for end in (0, -1))
        for step in range(3):
            assert last[step] < first[step + 2]
            assert last[step] > first[step + 1]

    @pytest.mark.parametrize("blur", [-0.1, 1.1, float("nan")])
    def test_a_share_outside_0_to_1_is_refused(self, blur: float) -> None:
        with pytest.raises(UserError, match="--blur is a share from 0 to 1"):
            open_schedule("blurred", blur=blur)


class TestRecurring:
    def test_each_round_has_all_classes_with_equal_parts(self) -> None:
        plan = open_schedule("recurring", rounds=3).plan(TEN, None, 0)
        assert counts(plan.pool_N, TEN) == list(TEN.sizes)
        assert sorted(set(plan.step_N.tolist())) == list(range(15))
        for number in range(3):
            of_round = plan.pool_N[plan.step_N // 5 == number]
            # 100, 90, 80, ... in three parts; the remainder goes to the first rounds.
            assert counts(of_round, TEN) == [size // 3 + (number < size % 3) for size in TEN.sizes]

    def test_a_class_is_in_one_step_of_each_round_and_in_other_company_later(self) -> None:
        plan = open_schedule("recurring", rounds=3).plan(TEN, None, 0)
        companies = [
            {frozenset(plan.pool_N[plan.step_N == step].tolist()) for step in range(start, start + 5)}
            for start in (0, 5, 10)
        ]
        assert companies[0] == {frozenset(step) for step in TEN.steps}
        for company in companies:
            assert sorted(pool for step in company for pool in step) == list(range(10))
        assert companies[1] != companies[0]
        assert companies[2] != companies[1]

    def test_one_round_is_refused(self) -> None:
        with pytest.raises(UserError, match="--rounds 1"):
            open_schedule("recurring", rounds=1)


class TestLongTail:
    def test_by_hand(self) -> None:
        pools = Pools(names=("a", "b", "c"), sizes=(100, 100, 100), steps=((0, 1), (2,)))
        plan = open_schedule("long-tail", imbalance=25.0).plan(pools, None, 0)
        assert counts(plan.pool_N, pools) == [100, 20, 4]  # 25^0, 25^(-1/2), 25^-1
        assert plan.step_N.tolist() == [0] * 120 + [1] * 4

    def test_a_number_of_records_is_cut_in_the_same_proportions(self) -> None:
        pools = Pools(names=("a", "b", "c"), sizes=(100, 100, 100), steps=((0, 1), (2,)))
        plan = open_schedule("long-tail", imbalance=25.0).plan(pools, 1_240, 0)
        assert counts(plan.pool_N, pools) == [1_000, 200, 40]

    def test_follows_the_order_in_which_classes_come(self) -> None:
        pools = Pools(names=("a", "b"), sizes=(10, 10), steps=((1,), (0,)))
        assert counts(open_schedule("long-tail", imbalance=10.0).plan(pools, None, 0).pool_N, pools) == [1, 10]

    def test_every_class_is_there(self) -> None:
        assert min(counts(open_schedule("long-tail", imbalance=1e6).plan(TEN, None, 0).pool_N, TEN)) == 1

    def test_less_than_1_is_refused(self) -> None:
        with pytest.raises(UserError, match="--imbalance"):
            open_schedule("long-tail", imbalance=0.5)


class TestDrifting:
    def test_pairs_by_hand(self) -> None:
        assert pairs(3, 2) == [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2), (2, 0)]
        assert len(pairs(9, 3)) == 27
        assert pairs(9, 3)[8] == (8, 0)

    def test_parts_by_hand(self) -> None:
        assert part_lengths(14, 6) == [3, 3, 2, 2, 2, 2]
        # 14 // 6 + 1 = 3: slices 0:3, 3:6, 6:9, 9:12, 12:14 and none, taken from the end.
        assert part_lengths(14, 6, as_published=True) == [0, 2, 3, 3, 3, 3]
        assert published_part(14, 1) == slice(12, 14)
        assert published_part(14, 5) == slice(0, 3)
        # MNIST's 5,923 zeros: five parts of 988 and one of 983.
        assert part_lengths(5_923, 6, as_published=True) == [983, 988, 988, 988, 988, 988]
        assert published_part(5_923, 0) == slice(4_940, 5_923)

    def test_published_batches_by_hand(self) -> None:
        # 30 and 20: round(30 / 50 * 16) = round(9.6) = 10 and 6; 20 and 14: round(9.41) = 9 and 7; 11 and 7:
        # round(9.78) = 10 and 6; 1 and 1: round(8.0) = 8, but there is only 1 of each.
        assert list(published_batches(30, 20)) == [(10, 6), (9, 7), (10, 6), (1, 1)]
        # 40 and 1: round(15.6) = 16 and 0; 24 and 1: round(15.36) = 15 and 1. The rest of the first does not come.
        assert list(published_batches(40, 1)) == [(16, 0), (15, 1)]

    def test_degrees_by_hand(self) -> None:
        np.testing.assert_allclose(degrees(0, np.arange(4), 4), [300, 30, 120, 210])
        np.testing.assert_allclose(degrees(2, np.arange(3), 3), [60, 180, 300])

    def test_the_nine_is_left_out_and_everything_else_comes_once(self) -> None:
        plan = Drifting().plan(TEN, None, 0)
        assert counts(plan.pool_N, TEN) == [*TEN.sizes[:9], 0]
        for step in range(27):
            assert set(plan.pool_N[plan.step_N == step].tolist()) == {step % 9, (step + 1) % 9}
        assert (np.diff(plan.step_N) >= 0).all()

    def test_classes_come_go_and_come_back(self) -> None:
        plan = Drifting().plan(TEN, None, 0)
        assert set(plan.step_N[plan.pool_N == 4].tolist()) == {3, 4, 12, 13, 21, 22}

    def test_each_class_turns_steadily_once_around(self) -> None:
        plan = Drifting().plan(TEN, 2_000, 0)
        assert plan.turn_degrees_N is not None
        for pool in range(9):
            turned = plan.turn_degrees_N[plan.pool_N == pool]
            assert turned[0] == pytest.approx((pool - 1) * 60 % 360)
            steps = np.mod(np.diff(turned), 360)
            np.testing.assert_allclose(steps, 360 / len(turned))

    def test_classes_that_are_no_digits_all_come(self) -> None:
        assert counts(Drifting().plan(LETTERS, None, 0).pool_N, LETTERS) == [4, 2, 3]

    def test_as_published_by_hand(self) -> None:
        # Two classes of 8 images, one round: two parts each. 8 // 2 + 1 = 5, so 3 images and then 5.
        # Pair (0, 1), 3 and 3: round(8.0) = 8 of 16, but there are only 3 of each. Pair (1, 0), 5 and 5, likewise.
        pools = Pools(names=("a", "b"), sizes=(8, 8), steps=((0, 1),))
        plan = Drifting(rounds=1, as_published=True).plan(pools, None, 0)
        assert plan.pool_N.tolist() == [0] * 3 + [1] * 3 + [1] * 5 + [0] * 5
        assert plan.step_N.tolist() == [0] * 6 + [1] * 10
        assert plan.turn_degrees_N is not None
        # Class 0 from -60 in steps of 45, class 1 from 0.
        zeros = [300, 345, 30, 75, 120, 165, 210, 255]
        ones = [0, 45, 90, 135, 180, 225, 270, 315]
        np.testing.assert_allclose(plan.turn_degrees_N, zeros[:3] + ones + zeros[3:])

    def test_one_class_is_refused(self) -> None:
        with pytest.raises(UserError, match="two classes"):
            Drifting().plan(Pools(names=("a",), sizes=(3,), steps=((0,),)), None, 0)


def test_unknown_schedules_and_options_are_refused_with_what_there_is() -> None:
    with pytest.raises(UserError, match="unknown schedule 'splitt'; known are blurred, drifting, long-tail"):
        open_schedule("splitt")
    with pytest.raises(UserError, match="schedule split has no --blur; it takes no option"):
        open_schedule("split", blur=0.5, rounds=None)
    with pytest.raises(UserError, match="schedule long-tail has no --rounds; it takes --imbalance"):
        open_schedule("long-tail", rounds=2)
