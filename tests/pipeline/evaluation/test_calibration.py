"""The expected calibration error, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.calibration import expected_calibration_error


def error(confidence: list[float], correct: list[bool], bins: int = 15) -> float | None:
    return expected_calibration_error(np.array(confidence), np.array(correct, dtype=np.bool_), bins)


def test_worked_out_by_hand() -> None:
    """Five bins: (0.4, 0.6] holds 0.5 and 0.6, of which one is right: |1/2 - 0.55| = 0.05; (0.8, 1] holds 0.9, 0.95 and
    1.0, all right: |1 - 0.95| = 0.05; (0.2, 0.4] holds 0.3, which is wrong: 0.3.
    2/6 * 0.05 + 3/6 * 0.05 + 1/6 * 0.3 = 0.55 / 6."""
    found = error([0.5, 0.6, 0.9, 0.95, 1.0, 0.3], [True, False, True, True, True, False], bins=5)
    assert found == pytest.approx(0.55 / 6)


def test_with_the_papers_fifteen_bins() -> None:
    """0.70 and 0.72 lie in (10/15, 11/15]; 0.74 in the next one: 2/3 * |1/2 - 0.71| + 1/3 * |1 - 0.74|."""
    assert error([0.70, 0.72, 0.74], [True, False, True]) == pytest.approx((0.42 + 0.26) / 3)


@pytest.mark.parametrize(
    ("confidence", "correct", "expected"),
    [
        ([1.0, 1.0], [True, True], 0.0),
        ([1.0, 1.0], [False, False], 1.0),
        ([0.8] * 5, [True, True, True, True, False], 0.0),
        ([0.6], [True], 0.4),
        ([1.0000001], [True], 1e-7),  # a sum of float32
    ],
)
def test_ends(confidence: list[float], correct: list[bool], expected: float) -> None:
    assert error(confidence, correct) == pytest.approx(expected, abs=1e-9)


def test_of_nothing_there_is_none() -> None:
    assert error([], []) is None
