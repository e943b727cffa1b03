"""Prequential accuracy: each record is first predicted, then learnt from (Dawid 1984; Gama et al. 2013)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from pipeline.settings import EvaluationSettings
from pipeline.state import StateTree

# A class's first record cannot be predicted, since nobody knew the class: the early gain begins with the second.
_EARLY_FIRST, _EARLY_LAST = 2, 50
_EARLY_RECORDS = _EARLY_LAST - _EARLY_FIRST + 1


class Prequential:
    """Accuracy over the newest `prequential_window` records, and how fast each class was picked up.

    Early accuracy gain of a class = accuracy on its records 2 to 50 - chance, where chance is the mean over these
    records of 1 / known classes, each as known when that record was predicted (more may come meanwhile).
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self._window_records = settings.prequential_window
        self._labels: list[str] = []  # by index, in order of appearance
        self._index: dict[str, int] = {}
        self._window: deque[tuple[int, bool]] = deque()  # (class index, correct), oldest first
        self._correct = 0  # in the window
        self._window_counts: list[list[int]] = []  # per class, in the window: [records, correct]
        self._early_records: list[int] = []  # per class, since the beginning, at most 50
        self._early_correct: list[int] = []  # among its records 2 to 50
        self._early_chance: list[float] = []  # sum of 1 / known classes over its records 2 to 50

    def record(self, labels: Sequence[str], correct: Sequence[bool], known_classes: int) -> None:
        """What was said of these records before they were learnt from, in log order.

        `known_classes` is the number of classes the prediction chose among; 0 where a record's own class was not one of
        them, so that no chance could have hit it.
        """
        assert known_classes >= 0, f"{known_classes} known classes"
        for label, right in zip(labels, correct, strict=True):
            column = self._index.get(label)
            if column is None:
                column = self._new_class(label)
            self._push(column, bool(right))
            if self._early_records[column] < _EARLY_LAST:
                self._early_records[column] += 1
                if self._early_records[column] >= _EARLY_FIRST:
                    self._early_correct[column] += bool(right)
                    self._early_chance[column] += 1 / known_classes if known_classes else 0.0

    @property
    def records(self) -> int:
        """Records in the window."""
        return len(self._window)

    @property
    def accuracy(self) -> float | None:
        """Over the window; None before the first record."""
        return self._correct / len(self._window) if self._window else None

    @property
    def class_accuracies(self) -> dict[str, tuple[float, int]]:
        """{class: (accuracy, records)} over the window, for the classes that occur in it."""
        return {
            label: (correct / records, records)
            for label, (records, correct) in zip(self._labels, self._window_counts, strict=True)
            if records
        }

    def early_accuracy_gain(self, label: str) -> float | None:
        """Between -1 and 1; None before the class's 50th record."""
        column = self._index.get(label)
        if column is None or self._early_records[column] < _EARLY_LAST:
            return None
        return (self._early_correct[column] - self._early_chance[column]) / _EARLY_RECORDS

    @property
    def average_early_accuracy_gain(self) -> float | None:
        """Mean over the classes that have had their 50 records; None while there is none."""
        gains = [gain for label in self._labels if (gain := self.early_accuracy_gain(label)) is not None]
        return sum(gains) / len(gains) if gains else None

    def state(self) -> StateTree:
        return {
            "labels": list(self._labels),
            "window_class": torch.tensor([column for column, _ in self._window], dtype=torch.int64),
            "window_correct": torch.tensor([right for _, right in self._window], dtype=torch.bool),
            "early_records": torch.tensor(self._early_records, dtype=torch.int64),
            "early_correct": torch.tensor(self._early_correct, dtype=torch.int64),
            "early_chance": torch.tensor(self._early_chance, dtype=torch.float64),
        }

    def load_state(self, state: StateTree) -> None:
        self._labels = []
        self._index = {}
        self._window = deque()
        self._correct = 0
        self._window_counts, self._early_records, self._early_correct, self._early_chance = [], [], [], []
        for label in cast(list[str], state["labels"]):
            self._new_class(label)
        columns = cast(list[int], cast(Tensor, state["window_class"]).tolist())
        bits = cast(list[bool], cast(Tensor, state["window_correct"]).tolist())
        for column, right in zip(columns, bits, strict=True):
            self._push(column, right)
        self._early_records = cast(Tensor, state["early_records"]).tolist()
        self._early_correct = cast(Tensor, state["early_correct"]).tolist()
        self._early_chance = cast(Tensor, state["early_chance"]).tolist()

    def _new_class(self, label: str) -> int:
        column = self._index[label] = len(self._labels)
        self._labels.append(label)
        self._window_counts.append([0, 0])
        self._early_records.append(0)
        self._early_correct.append(0)
        self._early_chance.append(0.0)
        return column

    def _push(self, column: int, right: bool) -> None:
        self._window.append((column, right))
        self._count(column, right, 1)
        if len(self._window) > self._window_records:
            self._count(*self._window.popleft(), -1)

    def _count(self, column: int, right: bool, step: int) -> None:
        self._window_counts[column][0] += step
        if right:
            self._window_counts[column][1] += step
            self._correct += step
