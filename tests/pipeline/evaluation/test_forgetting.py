from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.forgetting import ClassEvaluation, ForgettingHistory
from pipeline.settings import EvaluationSettings
from pipeline.state import fingerprint
from tests.pipeline.evaluation.stored import stored_and_loaded

PROPERTY = settings(max_examples=100)

SETTINGS = EvaluationSettings(min_class_samples=20, burst_records=50)


def test_a_course_worked_out_by_hand() -> None:
    history = ForgettingHistory(SETTINGS)
    assert history.newest_report() is None

    history.observe({"a": 50})
    assert history.burst_ended() == ["a"]
    first = history.record(100, {"a": (0.8, 25)})
    assert (first.average_accuracy, first.average_forgetting, first.backward_transfer) == (0.8, None, 0.0)
    assert (first.worst_class, first.known_classes, first.at_records) == ("a", 1, 100)

    history.observe({"b": 30, "c": 5})
    assert history.burst_ended() == []
    second = history.record(200, {"a": (0.9, 25), "b": (0.5, 25)})
    assert second.average_accuracy == pytest.approx(0.7)
    assert second.average_forgetting == 0.0  # b is seen for the first time: only a counts
    assert second.backward_transfer == pytest.approx(0.1)  # a: 0.9 - 0.8
    assert (second.worst_class, second.known_classes) == ("b", 3)

    history.observe({"b": 20})
    assert history.burst_ended() == ["b"]
    assert history.burst_ended() == []
    third = history.record(300, {"a": (0.6, 25), "b": (0.75, 40), "c": (0.0, 10)})
    a, b, c = third.classes
    assert (a.name, a.accuracy, a.n, a.best, a.at_burst_end, a.in_averages) == ("a", 0.6, 25, 0.9, 0.8, True)
    assert a.forgetting == pytest.approx(0.3)
    assert a.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 25))
    assert (b.best, b.forgetting, b.at_burst_end, b.standard_error) == (0.75, 0.0, 0.75, math.sqrt(0.1875 / 40))
    assert c == ClassEvaluation(
        name="c",
        accuracy=0.0,
        n=10,
        standard_error=0.0,
        best=0.0,
        forgetting=0.0,
        at_burst_end=None,
        in_averages=False,
        at_records=300,
    )
    assert third.average_accuracy == pytest.approx((0.6 + 0.75) / 2)
    assert third.average_forgetting == pytest.approx((0.3 + 0.0) / 2)
    assert third.backward_transfer == pytest.approx((-0.2 + 0.0) / 2)
    assert third.worst_class == "a"  # c is worse, on too few samples
    assert history.newest_report() == third

    fourth = history.record(400, {"a": (0.4, 25), "b": (0.65, 40), "c": (0.5, 10)})
    assert fourth.average_forgetting == pytest.approx((0.5 + 0.1) / 2)
    assert fourth.backward_transfer == pytest.approx((-0.4 - 0.1) / 2)
    assert [point.at_records for point in history.points] == [100, 200, 300, 400]
    assert history.points[2].average_forgetting == third.average_forgetting
    assert history.points[3].class_accuracies == pytest.approx({"a": 0.4, "b": 0.65, "c": 0.5})


def test_classes_that_were_left_out_stay_as_they_were() -> None:
    history = ForgettingHistory(SETTINGS)
    assert history.evaluated_at == {}
    history.record(100, {"a": (0.9, 25), "b": (0.5, 25), "c": (0.2, 25)})
    report = history.record(200, {"b": (0.3, 30)}, left_out={"a", "c"})
    a, b, _ = report.classes
    assert (a.accuracy, a.n, a.forgetting, a.at_records) == (0.9, 25, 0.0, 100)
    assert (b.accuracy, b.n, b.at_records) == (0.3, 30, 200)
    assert b.forgetting == pytest.approx(0.2)
    assert report.average_accuracy == pytest.approx((0.9 + 0.3 + 0.2) / 3)
    assert report.average_forgetting == pytest.approx(0.2)  # only b was evaluated before as well
    assert history.evaluated_at == {"a": 100, "b": 200, "c": 100}
    assert history.points[-1].class_accuracies == pytest.approx({"a": 0.9, "b": 0.3, "c": 0.2})

    # c has no held-out samples any more; the end of a's burst is measured by the evaluation that follows it
    history.observe({"a": 50, "c": 50})
    assert history.unmeasured == history.burst_ended() == ["a", "c"]
    report = history.record(300, {"a": (0.7, 25)}, left_out={"b"})
    assert [(entry.name, entry.at_burst_end) for entry in report.classes] == [("a", 0.7), ("b", None)]
    assert report.average_forgetting == pytest.approx((0.2 + 0.2) / 2)
    assert history.unmeasured == []

    again = ForgettingHistory(SETTINGS)
    again.load_state(stored_and_loaded(history.state()))
    assert again.newest_report() == report
    assert again.evaluated_at == {"a": 300, "b": 200, "c": 100}
    assert fingerprint(again.state()) == fingerprint(history.state())


def test_a_state_from_before_evaluations_left_classes_out_still_loads() -> None:
    history = ForgettingHistory(SETTINGS)
    history.record(100, {"a": (0.9, 25), "b": (0.5, 25)})
    report = history.record(200, {"b": (0.3, 25)})
    state = stored_and_loaded(history.state())
    del state["evaluated_at"]
    again = ForgettingHistory(SETTINGS)
    again.load_state(state)
    assert again.newest_report() == report
    assert again.evaluated_at == {"b": 200}


def test_a_lucky_best_on_few_samples_does_not_stand_for_good() -> None:
    history = ForgettingHistory(SETTINGS)
    history.record(100, {"a": (1.0, 3)})
    report = history.record(200, {"a": (0.6, 19)})
    assert report.classes[0].forgetting == pytest.approx(0.4)  # shown, since there is nothing better
    assert (report.average_accuracy, report.average_forgetting, report.worst_class) == (None, None, None)
    report = history.record(300, {"a": (0.5, 20)})
    assert (report.classes[0].best, report.classes[0].forgetting) == (0.5, 0.0)
    assert (report.average_accuracy, report.average_forgetting) == (0.5, None)  # no earlier evaluation that counts
    report = history.record(400, {"a": (0.25, 30)})
    assert (report.classes[0].best, report.average_forgetting) == (0.5, 0.25)


def test_the_end_of_the_burst_counts_whatever_its_n_was() -> None:
    history = ForgettingHistory(SETTINGS)
    history.observe({"a": 50})
    assert history.record(100, {"a": (0.75, 4)}).backward_transfer is None
    assert history.record(200, {"a": (0.5, 20)}).backward_transfer == -0.25


def test_a_burst_that_ended_with_nothing_held_out_is_never_measured() -> None:
    history = ForgettingHistory(SETTINGS)
    history.observe({"a": 50, "b": 10})
    history.record(100, {"b": (1.0, 20)})
    report = history.record(200, {"a": (0.5, 20), "b": (1.0, 20)})
    assert report.classes[1].name == "a"
    assert report.classes[1].at_burst_end is None
    assert report.backward_transfer is None


def test_an_ended_burst_waits_for_the_next_evaluation() -> None:
    history = ForgettingHistory(SETTINGS)
    history.observe({"a": 50})
    assert history.burst_ended() == ["a"]
    history.observe({"a": 500})
    assert history.record(600, {"a": (0.5, 20)}).classes[0].at_burst_end == 0.5
    assert history.record(700, {"a": (0.75, 20)}).classes[0].at_burst_end == 0.5


def test_a_class_that_is_missing_from_the_newest_evaluation_is_missing_from_its_report() -> None:
    history = ForgettingHistory(SETTINGS)
    history.record(100, {"a": (1.0, 20), "b": (0.5, 20)})
    report = history.record(200, {"b": (0.5, 20)})
    assert [entry.name for entry in report.classes] == ["b"]
    assert report.average_accuracy == 0.5
    assert report.known_classes == 2


def test_best_accuracies_can_be_kept_across_an_adoption() -> None:
    abandoned, adopted = ForgettingHistory(SETTINGS), ForgettingHistory(SETTINGS)
    abandoned.record(100, {"a": (0.5, 20), "b": (0.9, 20), "small": (1.0, 3)})
    abandoned.record(200, {"a": (0.8, 20), "b": (0.7, 20), "small": (1.0, 3)})
    assert abandoned.best == {"a": 0.8, "b": 0.9}
    adopted.record(100, {"a": (0.6, 20)})
    adopted.keep_best(abandoned.best)
    report = adopted.record(150, {"a": (0.7, 20), "b": (1.0, 20)})
    assert {entry.name: (entry.best, round(entry.forgetting, 6)) for entry in report.classes} == {
        "a": (0.8, 0.1),
        "b": (1.0, 0.0),
    }
    assert report.average_forgetting == pytest.approx(0.05)  # b was seen on the other branch
    report = adopted.record(200, {"a": (0.9, 5)})
    assert (report.classes[0].best, report.classes[0].forgetting) == (0.8, 0.0)  # on too few samples


Course = list[tuple[dict[str, int], dict[str, tuple[float, int]] | None]]
labels = st.sampled_from(["a", "b/c", "d", ""])
courses: st.SearchStrategy[Course] = st.lists(
    st.tuples(
        st.dictionaries(labels, st.integers(0, 60), max_size=4),
        st.none() | st.dictionaries(labels, st.tuples(st.floats(0, 1), st.integers(1, 40)), max_size=4),
    ),
    max_size=12,
)


def follow(history: ForgettingHistory, course: Course, start: int) -> None:
    for number, (counts, accuracies) in enumerate(course, start):
        history.observe(counts)
        if number % 3:
            history.burst_ended()
        if accuracies is not None:
            history.record(number, accuracies)


@PROPERTY
@given(before=courses, after=courses)
def test_a_restored_history_goes_on_bit_for_bit(before: Course, after: Course) -> None:
    history, restored = ForgettingHistory(SETTINGS), ForgettingHistory(SETTINGS)
    restored.record(1, {"gone": (0.5, 20)})
    follow(history, before, 0)
    restored.load_state(stored_and_loaded(history.state()))
    assert fingerprint(restored.state()) == fingerprint(history.state())
    assert restored.newest_report() == history.newest_report()
    follow(history, after, len(before))
    follow(restored, after, len(before))
    assert fingerprint(restored.state()) == fingerprint(history.state())
    assert restored.newest_report() == history.newest_report()
    assert restored.points == history.points
    assert restored.burst_ended() == history.burst_ended()


@PROPERTY
@given(course=courses)
def test_forgetting_lies_between_0_and_1(course: Course) -> None:
    history = ForgettingHistory(SETTINGS)
    follow(history, course, 0)
    report = history.newest_report()
    for entry in report.classes if report else ():
        assert 0 <= entry.forgetting <= 1
        assert 0 <= entry.standard_error <= 0.5
