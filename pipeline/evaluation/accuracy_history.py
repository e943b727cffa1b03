"""The course of the accuracies, for plots: as many evaluations as the bound allows, evenly spaced, and the newest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.accuracy_course import AccuracyCourse, HistoryRow
from pipeline.state import StateTree

_POINTS = 2_000
_CELLS = 500_000  # points x classes: 2 MB of a snapshot, however many classes there are
_POINTS_AT_LEAST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPoint:
    """One evaluation. Averages are None where no class had enough samples."""

    at_records: int
    average_accuracy: float | None
    average_forgetting: float | None
    class_accuracies: Mapping[str, float]  # float32 precision


class AccuracyHistory:
    """Keeps every `stride`-th evaluation and the newest one; the stride doubles where there are too many."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._rows: list[HistoryRow] = []
        self._evaluations = 0
        self._stride = 1

    def append(
        self,
        at_records: int,
        average_accuracy: float | None,
        average_forgetting: float | None,
        class_accuracies: Mapping[str, float],
    ) -> None:
        """Add an evaluation; at the bound, every second kept one goes."""
        columns = [self._index.setdefault(label, len(self._index)) for label in class_accuracies]
        accuracies_C = np.full(len(self._index), np.nan, dtype=np.float32)
        accuracies_C[columns] = list(class_accuracies.values())
        if self._rows and self._rows[-1].number % self._stride:
            self._rows.pop()  # it was kept for being the newest
        self._rows.append(
            HistoryRow(
                self._evaluations,
                at_records,
                math.nan if average_accuracy is None else average_accuracy,
                math.nan if average_forgetting is None else average_forgetting,
                accuracies_C,
            )
        )
        self._evaluations += 1
        limit = max(_POINTS_AT_LEAST, min(_POINTS, _CELLS // max(1, len(self._index))))
        while len(self._rows) > limit:
            self._stride *= 2
            newest = self._rows[-1]
            self._rows = [row for row in self._rows if row.number % self._stride == 0 or row is newest]

    @property
    def points(self) -> list[HistoryPoint]:
        """Oldest first."""
        labels = list(self._index)
        return [
            HistoryPoint(
                at_records=row.at_records,
                average_accuracy=None if math.isnan(row.average_accuracy) else row.average_accuracy,
                average_forgetting=None if math.isnan(row.average_forgetting) else row.average_forgetting,
                class_accuracies={
                    label: accuracy
                    for label, accuracy in zip(labels, row.accuracies_C.tolist(), strict=False)  # fewer were known then
                    if not math.isnan(accuracy)
                },
            )
            for row in self._rows
        ]

    @property
    def course(self) -> AccuracyCourse:
        """All of it as it stands now, for another thread: only references are copied."""
        return AccuracyCourse(labels_C=tuple(self._index), rows_P=tuple(self._rows), evaluations=self._evaluations)

    def state(self) -> StateTree:
        accuracies_PC = np.ascontiguousarray(self.course.accuracies_CP.T)
        averages_P2 = [[row.average_accuracy, row.average_forgetting] for row in self._rows]
        return {
            "labels": list(self._index),
            "evaluations": self._evaluations,
            "stride": self._stride,
            "numbers": torch.tensor([row.number for row in self._rows], dtype=torch.int64),
            "at_records": torch.tensor([row.at_records for row in self._rows], dtype=torch.int64),
            "averages": torch.tensor(averages_P2, dtype=torch.float64).reshape(-1, 2),
            "accuracies": torch.from_numpy(accuracies_PC),
        }

    def load_state(self, state: StateTree) -> None:
        self._index = {label: column for column, label in enumerate(cast(list[str], state["labels"]))}
        self._evaluations = cast(int, state["evaluations"])
        self._stride = cast(int, state["stride"])
        self._rows = [
            HistoryRow(number, at_records, accuracy, forgetting, accuracies_C.copy())
            for number, at_records, (accuracy, forgetting), accuracies_C in zip(
                cast(Tensor, state["numbers"]).tolist(),
                cast(Tensor, state["at_records"]).tolist(),
                cast(Tensor, state["averages"]).tolist(),
                cast(Tensor, state["accuracies"]).numpy(),
                strict=True,
            )
        ]
