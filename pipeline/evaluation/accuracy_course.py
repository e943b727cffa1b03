"""The course of the accuracies as it stands: taken in a moment by the thread that learns, read by another one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Legend: P = points (evaluations that were kept), C = classes in order of their first evaluation


@dataclass(frozen=True, slots=True, eq=False)
class HistoryRow:
    """One evaluation, which nobody changes once it is made."""

    number: int  # of the evaluation, from 0
    at_records: int
    average_accuracy: float  # NaN for None
    average_forgetting: float  # NaN for None
    accuracies_C: npt.NDArray[np.float32]  # by class index, NaN where not evaluated; only classes known then


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AccuracyCourse:
    """Some of the evaluations, oldest first."""

    labels_C: tuple[str, ...]
    rows_P: tuple[HistoryRow, ...]
    evaluations: int  # made in all

    def thinned(self, most_points: int) -> AccuracyCourse:
        """At most so many of them: each 2nd, 4th, 8th, ... and the newest.

        Which these are hangs on their numbers, not on how many there are: what is drawn again after a few more
        evaluations has its old columns still, until the step doubles.
        """
        assert most_points >= 2, "the newest, and one to compare it with"
        step, rows_P = 1, self.rows_P
        while len(rows_P) > most_points:
            step *= 2
            newest = self.rows_P[-1]
            rows_P = tuple(row for row in self.rows_P if row.number % step == 0 or row is newest)
        return AccuracyCourse(labels_C=self.labels_C, rows_P=rows_P, evaluations=self.evaluations)

    @property
    def accuracies_CP(self) -> npt.NDArray[np.float32]:
        """NaN where a class was not known yet, or had no held-out sample."""
        accuracies_PC = np.full((len(self.rows_P), len(self.labels_C)), np.nan, dtype=np.float32)
        for place, row in enumerate(self.rows_P):
            accuracies_PC[place, : len(row.accuracies_C)] = row.accuracies_C
        return accuracies_PC.T
