"""Which rows of a log a job keeps where there are more than it may."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.restructuring.labelled_rows import LabelledRows, gather_labelled, gather_new, gather_unlabelled


def rows(labels: Iterable[str]) -> Iterator[tuple[np.ndarray[tuple[int], np.dtype[np.float32]], str]]:
    for number, label in enumerate(labels):
        yield np.array([number], np.float32), label


def test_as_many_as_it_may_keep_are_all_kept_in_their_order() -> None:
    kept = gather_labelled(rows("abab"), 4, seed=0)
    assert (kept.labels, kept.x[:, 0].tolist()) == (("a", "b", "a", "b"), [0, 1, 2, 3])
    assert len(gather_labelled(rows(""), 4, seed=0)) == 0


def test_a_rare_class_loses_nothing_to_a_common_one() -> None:
    """Uniformly drawn, 20 of 1,010 would hold all ten of `rare` in one of 10^20 cases."""
    for labels in (["common"] * 1_000 + ["rare"] * 10, ["rare"] * 10 + ["common"] * 1_000):
        kept = gather_labelled(rows(labels), 20, seed=0)
        assert Counter(kept.labels) == {"common": 10, "rare": 10}
        assert all(labels[int(number)] == label for number, label in zip(kept.x[:, 0], kept.labels, strict=True))
        assert len(set(kept.x[:, 0].tolist())) == 20


def test_of_one_class_each_row_is_as_likely_to_be_kept() -> None:
    often = Counter(int(n) for seed in range(400) for n in gather_labelled(rows("a" * 40), 10, seed).x[:, 0])
    assert sum(often.values()) == 4_000
    # 100 of each are expected, with a standard deviation of 8.7
    assert all(60 < often[number] < 140 for number in range(40))


def test_of_a_common_class_each_row_is_as_likely_though_another_class_took_its_places() -> None:
    labels = "a" * 30 + "b" * 5 + "a" * 10
    often: Counter[int] = Counter()
    for seed in range(400):
        kept = gather_labelled(rows(labels), 10, seed)
        assert Counter(kept.labels) == {"a": 5, "b": 5}
        often.update(int(n) for n, label in zip(kept.x[:, 0], kept.labels, strict=True) if label == "a")
    # 50 of each are expected, with a standard deviation of 6.6
    assert all(20 < often[number] < 80 for number in [*range(30), *range(35, 45)])


def test_the_same_seed_keeps_the_same_rows() -> None:
    labels = ["a", "b", "b", "c"] * 50
    first, again, other = (gather_labelled(rows(labels), 30, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.x, again.x)
    assert not np.array_equal(first.x, other.x)


def test_of_the_new_classes_alone() -> None:
    reservoir = LabelledRows(x=np.zeros((2, 1), np.float32), labels=("old", "new"))
    assert gather_new(rows(["old", "new", "new"]), reservoir, ["new"], 10, seed=0).labels == ("new", "new")
    assert gather_new(None, reservoir, ["new"], 10, seed=0).labels == ("new",)


def test_of_unlabelled_rows_no_more_than_it_may() -> None:
    numbers = gather_unlabelled((x for x, _ in rows("a" * 100)), 30, seed=0)[:, 0].tolist()
    assert len(set(numbers)) == 30
    assert max(numbers) > 50
