"""What another thread sees of the history: a copy of the moment, and thinned."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.accuracy_history import AccuracyHistory


def history(evaluations: int) -> AccuracyHistory:
    """Class "late" comes at the fifth evaluation."""
    made = AccuracyHistory()
    for number in range(evaluations):
        accuracies = {"early": number / 1000} | ({"late": 0.5} if number >= 4 else {})
        made.append(number * 10, 0.5, None, accuracies)
    return made


def test_a_course_stays_as_it_was_while_the_history_goes_on() -> None:
    made = history(3)
    before = made.course
    made.append(30, 0.9, 0.1, {"early": 1.0, "late": 1.0})
    assert [row.at_records for row in before.rows_P] == [0, 10, 20]
    assert before.labels_C == ("early",)
    assert [row.at_records for row in made.course.rows_P] == [0, 10, 20, 30]


def test_unknown_cells_are_nan() -> None:
    accuracies_CP = history(6).course.accuracies_CP
    assert accuracies_CP.shape == (2, 6)
    np.testing.assert_array_equal(np.isnan(accuracies_CP[1]), [True] * 4 + [False] * 2)
    np.testing.assert_allclose(accuracies_CP[0], [0, 0.001, 0.002, 0.003, 0.004, 0.005], rtol=1e-6)


def test_few_points_are_left_as_they_are() -> None:
    course = history(5).course
    assert course.thinned(5).rows_P == course.rows_P


def test_thinned_it_has_even_steps_and_the_newest() -> None:
    thin = history(100).course.thinned(30)
    numbers = [row.number for row in thin.rows_P]
    assert numbers == [*range(0, 100, 4), 99]
    assert thin.evaluations == 100


def test_a_few_evaluations_more_move_no_column() -> None:
    """Until the step doubles, what was drawn stays, but for the newest."""
    for evaluations in range(41, 79):
        before = [row.number for row in history(evaluations).course.thinned(40).rows_P]
        after = [row.number for row in history(evaluations + 1).course.thinned(40).rows_P]
        assert len(after) <= 40
        assert set(before[:-1]) <= set(after)
