"""What a sub-module learns from, on the device: records of the new classes, rehearsal samples, unlabelled rows.

Legend: B = rows of a step, R = rehearsal samples of a step, C = classes, U = unlabelled rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.device import to_device
from pipeline.restructuring.augmented_views import AugmentedViews
from pipeline.restructuring.labelled_rows import LabelledRows, balanced
from pipeline.restructuring.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Of one step, augmented views."""

    x: Tensor  # (B + R, ...)
    y: Tensor  # (B + R,) columns
    weight: Tensor  # (B + R,) whose sum is 1 on average


class Lesson:
    """Every class has the same weight, however many of its rows are there: an old one by its samples, over and over, a
    new one by the weight of its records."""

    def __init__(
        self,
        class_names: Sequence[str],
        records: LabelledRows,
        rehearsal: LabelledRows,
        unlabelled: npt.NDArray[np.generic],
        device: torch.device,
    ) -> None:
        """`rehearsal`: of the old classes; may be none."""
        self.device = device
        self.classes = len(class_names)
        self._column = {name: column for column, name in enumerate(class_names)}
        old = sorted({self._column[label] for label in rehearsal.labels})
        self.old = torch.tensor(old, dtype=torch.int64, device=device)
        self.records = len(records)
        rehearsed = balanced(rehearsal) if len(rehearsal) else rehearsal
        self._x, self._y = to_device(records.x, device), self.columns(records)
        counts = torch.bincount(self._y, minlength=self.classes)
        self._share = len(records) / (counts[self._y] * int((counts > 0).sum()))  # its mean is 1
        self._old_x, self._old_y = to_device(rehearsed.x, device), self.columns(rehearsed)
        self.unlabelled = to_device(unlabelled, device)

    def batch(self, training: Training, views: AugmentedViews) -> Batch:
        """The rows of the training's next step, with as many rehearsal samples."""
        rows_B = to_device(training.rows(), self.device)
        x, y = self._x[rows_B], self._y[rows_B]
        weight = self._share[rows_B] / len(x)
        slots_R = self._drawn(training, len(rows_B))
        if len(slots_R):
            x, y = torch.cat([x, self._old_x[slots_R]]), torch.cat([y, self._old_y[slots_R]])
            of_old = len(self.old) / self.classes
            weight = torch.cat([weight * (1 - of_old), weight.new_full((len(slots_R),), of_old / len(slots_R))])
        return Batch(x=views.of(x, training.done), y=y, weight=weight)

    def rehearsed(self, training: Training, views: AugmentedViews, size: int) -> tuple[Tensor, Tensor] | None:
        """Views of so many rehearsal samples alone, and their columns; None: there is no old class."""
        slots_R = self._drawn(training, size)
        return (views.of(self._old_x[slots_R], training.done), self._old_y[slots_R]) if len(slots_R) else None

    def _drawn(self, training: Training, size: int) -> Tensor:
        if not len(self.old):
            return self.old
        return to_device(training.draw("rehearsal", len(self._old_y), size), self.device)

    def columns(self, rows: LabelledRows) -> Tensor:
        """(rows,) the logit columns of their labels."""
        return to_device(np.array([self._column[label] for label in rows.labels], dtype=np.int64), self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalSet:
    """What the joint head is tuned on, on the device: as many rows of each class."""

    x: Tensor
    y: Tensor  # columns
    unlabelled: Tensor
    guessed_UC: Tensor  # their guessed labels; of no row where they are not heard
    classes: int

    @property
    def device(self) -> torch.device:
        return self.y.device
