"""Answers and their delayed labels: by hand, in any order, and within their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation import shadow_scores, version_score
from pipeline.evaluation.delayed_labels import DelayedLabels
from pipeline.evaluation.shadow_scores import ROLES, Role
from pipeline.evaluation.version_pair import PairScore, PairTally
from pipeline.evaluation.version_score import Tally

HORIZON_SECONDS = 100.0


def new_labels(*, most_open: int = 1_000, window: int = 1_000) -> DelayedLabels:
    return DelayedLabels(horizon_seconds=HORIZON_SECONDS, most_open=most_open, window=window)


def test_by_hand() -> None:
    """Five requests: r1 and r2 answered alike and rightly; r3 by the challenger alone rightly; r4 without a label; r5
    could not be read by the champion."""
    labels = new_labels()
    for name, old, new in (
        ("r1", "cat", "cat"),
        ("r2", "dog", "dog"),
        ("r3", "dog", "cat"),
        ("r4", "dog", "cat"),
        ("r5", None, "owl"),
    ):
        labels.answered(name, "champion", 1, old, 10.0)
        labels.answered(name, "challenger", 2, new, 11.0)
    for name, truth in (("r1", "cat"), ("r2", "dog"), ("r3", "cat"), ("r5", "owl"), ("never asked", "cat")):
        labels.labelled(name, truth, 50.0)
    champion, challenger = labels.scores.version("champion", 1), labels.scores.version("challenger", 2)
    assert champion is not None
    assert challenger is not None
    assert (champion.answered, champion.unreadable, champion.total) == (5, 1, Tally(4, 2))
    assert (challenger.answered, challenger.unreadable, challenger.total) == (5, 0, Tally(4, 4))
    assert champion.classes == {"cat": Tally(2, 1), "dog": Tally(1, 1), "owl": Tally(1, 0)} == champion.recent_classes()
    assert challenger.classes == {"cat": Tally(2, 2), "dog": Tally(1, 1), "owl": Tally(1, 1)}
    assert champion.recent().accuracy == 0.5
    pair = labels.scores.pair(1, 2)
    assert pair is not None
    assert pair.classes == {"cat": PairTally(2, 1, 2), "dog": PairTally(1, 1, 1), "owl": PairTally(1, 0, 1)}
    assert pair.recent_agreement() == 2 / 5
    assert pair.recent_classes()["cat"].difference == 0.5
    assert labels.scores.pair_score(1, 2) == PairScore(
        champion_version=1,
        challenger_version=2,
        answered=5,
        agreement=0.4,
        labelled=4,
        champion_accuracy=0.5,
        challenger_accuracy=1.0,
    )
    assert (labels.scores.answered, labels.scores.labelled) == (
        {"champion": 5, "challenger": 5},
        {"champion": 4, "challenger": 4},
    )
    assert (labels.late, labels.dropped) == (0, {"answers": 0, "labels": 0})


def test_versions_that_never_answered_together_have_no_shares() -> None:
    labels = new_labels()
    labels.answered("r", "champion", 1, "cat", 0.0)
    labels.labelled("r", "cat", 0.0)
    assert labels.scores.pair_score(1, 2) == PairScore(
        champion_version=1,
        challenger_version=2,
        answered=0,
        agreement=None,
        labelled=0,
        champion_accuracy=None,
        challenger_accuracy=None,
    )


def test_the_first_answer_stands_and_so_does_the_first_label() -> None:
    labels = new_labels()
    labels.answered("r", "champion", 1, "cat", 0.0)
    labels.answered("r", "champion", 1, "dog", 1.0)
    labels.answered("r", "champion", 2, "dog", 1.0)
    labels.labelled("r", "dog", 2.0)
    labels.labelled("r", "cat", 3.0)
    labels.answered("r", "champion", 1, "dog", 4.0)
    score = labels.scores.version("champion", 1)
    assert score is not None
    assert (score.answered, score.total) == (1, Tally(1, 0))
    assert labels.scores.versions("champion") == (1,)


def test_a_payload_that_neither_could_read_says_nothing_of_the_two_together() -> None:
    labels = new_labels()
    for role in ROLES:
        labels.answered("r", role, 1, None, 0.0)
    labels.labelled("r", "cat", 1.0)
    assert labels.scores.pair_score(1, 1).answered == labels.scores.pair_score(1, 1).labelled == 0
    score = labels.scores.version("challenger", 1)
    assert score is not None
    assert (score.unreadable, score.total) == (1, Tally(1, 0))


def test_a_label_after_the_horizon_is_late_once() -> None:
    labels = new_labels()
    for name in ("in time", "late", "gone", "never"):
        labels.answered(name, "champion", 1, "cat", 0.0)
        labels.answered(name, "challenger", 2, "cat", 0.0)
    labels.labelled("in time", "cat", HORIZON_SECONDS)
    labels.labelled("late", "cat", HORIZON_SECONDS + 0.5)  # memory still holds its answers: the times decide
    labels.labelled("late", "cat", HORIZON_SECONDS + 0.6)
    assert labels.late == 1
    labels.advance(HORIZON_SECONDS)
    assert labels.open_ids == {"answers": 4, "labels": 0}
    labels.advance(HORIZON_SECONDS + 1)
    assert (labels.open_ids["answers"], labels.remembered_expired) == (0, 2)
    for _ in range(2):
        labels.labelled("gone", "cat", HORIZON_SECONDS + 2)
    labels.labelled("nobody's", "cat", HORIZON_SECONDS + 2)
    assert (labels.late, labels.scores.labelled["champion"]) == (2, 1)
    assert labels.scores.pair_score(1, 2).labelled == 1


def test_a_label_may_come_before_the_answer_but_not_by_more_than_the_horizon() -> None:
    labels = new_labels()
    labels.labelled("near", "cat", 50.0)
    labels.labelled("far", "cat", 0.0)
    for name in ("near", "far"):
        labels.answered(name, "champion", 1, "cat", HORIZON_SECONDS + 50)
    assert (labels.scores.labelled["champion"], labels.late) == (1, 0)
    labels.labelled("waits", "cat", 60.0)
    labels.advance(HORIZON_SECONDS + 61)
    assert labels.open_ids["labels"] == 0


def test_the_oldest_go_where_memory_ends_and_are_counted() -> None:
    labels = new_labels(most_open=2)
    labels.answered("a", "champion", 1, "cat", 0.0)
    labels.answered("a", "challenger", 2, "cat", 0.0)
    labels.answered("b", "champion", 1, "cat", 1.0)
    labels.labelled("b", "cat", 1.0)
    labels.answered("c", "champion", 1, "cat", 2.0)
    assert labels.dropped == {"answers": 2, "labels": 0}
    labels.answered("d", "champion", 1, "cat", 3.0)  # b goes, and had all it waited for
    assert labels.dropped == {"answers": 2, "labels": 0}
    for name in "xyz":
        labels.labelled(name, "cat", 3.0)
    assert labels.dropped == {"answers": 2, "labels": 1}
    labels.labelled("a", "cat", 4.0)
    assert (labels.late, labels.scores.labelled["champion"]) == (0, 1)


def test_recent_figures_follow_the_newest_answers() -> None:
    labels = new_labels(window=4)
    for number in range(10):
        labels.answered(str(number), "champion", 1, "cat", 0.0)
        labels.answered(str(number), "challenger", 2, "cat" if number < 8 else "dog", 0.0)
        labels.labelled(str(number), "dog" if number < 8 else "cat", 1.0)
    champion, pair = labels.scores.version("champion", 1), labels.scores.pair(1, 2)
    assert champion is not None
    assert pair is not None
    assert (champion.recent(), champion.total) == (Tally(4, 2), Tally(10, 2))
    assert pair.recent_agreement() == 0.5
    assert pair.recent_classes() == {"dog": PairTally(2, 0, 0), "cat": PairTally(2, 2, 0)}


def test_the_current_version_is_the_one_that_answered_last_unless_that_is_long_ago() -> None:
    labels = new_labels()
    assert labels.current("champion") is None
    labels.answered("a", "champion", 7, "cat", 20.0)
    labels.answered("b", "champion", 6, "cat", 10.0)
    assert (labels.current("champion"), labels.current("challenger")) == (7, None)
    labels.advance(20.0 + HORIZON_SECONDS)
    assert labels.current("champion") == 7
    labels.advance(21.0 + HORIZON_SECONDS)
    assert labels.current("champion") is None


def test_versions_pairs_and_classes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_score, "MOST_CLASSES", 3)
    labels = new_labels()
    for version in range(50):
        for role in ROLES:
            labels.answered(f"r{version}", role, version, "cat", float(version))
    labels.labelled("r0", "cat", 50.0)  # of a version that is kept no more
    kept = tuple(range(50 - shadow_scores.MOST_VERSIONS, 50))
    assert labels.scores.versions("champion") == labels.scores.versions("challenger") == kept
    assert labels.scores.pairs() == tuple((version, version) for version in kept)
    for number in range(6):
        labels.answered(f"c{number}", "champion", 49, "cat", 60.0)
        labels.labelled(f"c{number}", f"class {number}", 60.0)
    score = labels.scores.version("champion", 49)
    assert score is not None
    assert (len(score.classes), score.total.labelled) == (3, 6)


def test_ids_of_any_kind_are_told_apart() -> None:
    labels = new_labels()
    for number, name in enumerate(("", "\ud800", "x" * 100_000, "x" * 100_001)):
        labels.answered(name, "champion", 1, "cat", 0.0)
        labels.labelled(name, "cat", 0.0)
        assert labels.scores.labelled["champion"] == number + 1


Telling = tuple[Any, ...]
TIMES = st.floats(0, HORIZON_SECONDS)
CLASSES = st.sampled_from(["cat", "dog", "owl"])


@st.composite
def tellings(draw: st.DrawFn) -> list[Telling]:
    """Answers and labels of some requests, all within the horizon; of a few neither, or only one of them, comes."""
    told: list[Telling] = []
    for number in range(draw(st.integers(0, 12))):
        for role in ROLES:
            if draw(st.booleans()):
                version, label, time = draw(st.integers(1, 3)), draw(st.none() | CLASSES), draw(TIMES)
                told.append(("answer", str(number), role, version, label, time))
        if draw(st.booleans()):
            told.append(("label", str(number), draw(CLASSES), draw(TIMES)))
    return told


def tell(labels: DelayedLabels, told: Sequence[Telling]) -> None:
    for kind, *values in told:
        (labels.answered if kind == "answer" else labels.labelled)(*values)


def counts(labels: DelayedLabels) -> object:
    """All that does not depend on which came last."""
    scores = labels.scores

    def of_version(role: Role, version: int) -> object:
        score = scores.version(role, version)
        assert score is not None
        return score.answered, score.unreadable, score.total, score.classes, score.recent_classes()

    def of_pair(champion: int, challenger: int) -> object:
        pair = scores.pair(champion, challenger)
        assert pair is not None
        return pair.answered, pair.agreed, pair.total, pair.classes, pair.recent_agreement(), pair.recent_classes()

    return (
        {(role, version): of_version(role, version) for role in ROLES for version in scores.versions(role)},
        {pair: of_pair(*pair) for pair in scores.pairs()},
        scores.answered,
        scores.labelled,
        {role: labels.current(role) for role in ROLES},
        labels.open_ids,
        labels.late,
    )


@given(st.data())
def test_any_order_gives_the_same_scores(data: st.DataObject) -> None:
    told = data.draw(tellings())
    again = [*told, *data.draw(st.lists(st.sampled_from(told)))] if told else []
    one, other = new_labels(), new_labels()
    tell(one, told)
    tell(other, data.draw(st.permutations(again)))  # some of it twice
    assert counts(one) == counts(other)


IDS = st.integers(0, 30).map(str)
ANY_TIME = st.floats(0, 10 * HORIZON_SECONDS)
ANY_TELLING = st.one_of(
    st.tuples(st.just("answer"), IDS, st.sampled_from(ROLES), st.integers(1, 40), st.none() | CLASSES, ANY_TIME),
    st.tuples(st.just("label"), IDS, CLASSES, ANY_TIME),
    st.tuples(st.just("advance"), ANY_TIME),
)


@given(st.lists(ANY_TELLING, max_size=100), st.integers(1, 5))
def test_memory_stays_within_its_bounds(told: list[Telling], most_open: int) -> None:
    labels = new_labels(most_open=most_open, window=3)
    for telling in told:
        if telling[0] == "advance":
            labels.advance(telling[1])
        else:
            tell(labels, [telling])
        assert max(*labels.open_ids.values(), labels.remembered_expired) <= most_open
        assert all(len(labels.scores.versions(role)) <= shadow_scores.MOST_VERSIONS for role in ROLES)
        assert len(labels.scores.pairs()) <= shadow_scores.MOST_VERSIONS
    scores = labels.scores
    for role in ROLES:
        assert scores.labelled[role] <= scores.answered[role]
        for version in scores.versions(role):
            score = scores.version(role, version)
            assert score is not None
            assert score.total.right <= score.total.labelled <= score.answered
            assert score.recent().labelled <= 3
