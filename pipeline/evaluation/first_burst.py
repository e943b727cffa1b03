"""When a class's first burst is over, since nobody tells where a task ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from pipeline.settings import EvaluationSettings
from pipeline.state import StateTree

# A class's share is taken over the newest steps that hold this many records together. Steps are whole in it, since the
# order of classes inside a step says nothing.
_SHARE_WINDOW_RECORDS = 500
# A share that never came to this many records in a window is too noisy to have a peak: of ten equally rare classes the
# one with ten records in one window and one in the next has not ended. Such a class ends by its number of records.
_PEAK_RECORDS = 20
_FALL = 10  # the burst is over where the share is at most 1 / 10 of its peak


class FirstBursts:
    """A class's first burst is over when it has `burst_records` records, or its share fell to a tenth of its peak."""

    def __init__(self, settings: EvaluationSettings) -> None:
        self._burst_records = settings.burst_records
        self._index: dict[str, int] = {}  # class -> index, in order of appearance
        self._records: list[int] = []  # per class, since the beginning
        self._peaks: list[float] = []  # per class, the largest share so far
        self._ended: list[bool] = []
        self._window: deque[dict[int, int]] = deque()  # one {class index: records} per step, oldest first
        self._window_total = 0
        self._window_records: list[int] = []  # per class

    @property
    def classes(self) -> list[str]:
        """All classes that had a record, in order of appearance."""
        return list(self._index)

    def observe(self, counts: Mapping[str, int]) -> list[str]:
        """Records per class of one step. Returns the classes whose first burst has ended with it.

        1. The step enters the window, and steps that it no longer needs leave.
        2. Shares are compared with their peaks. Until the window is full a share is taken as if it were: the first
           record of a stream is not a peak of 100 %.
        """
        # 1.
        step = {self._column(label): records for label, records in counts.items() if records}
        if not step:
            return []
        for column, records in step.items():
            self._records[column] += records
        self._enter(step)
        changed = set(step)
        while self._window_total - sum(self._window[0].values()) >= _SHARE_WINDOW_RECORDS:
            changed |= self._leave()
        # 2.
        size = max(self._window_total, _SHARE_WINDOW_RECORDS)
        ended = []
        labels = self.classes
        for column in sorted(changed):
            if self._ended[column]:
                continue
            share = self._window_records[column] / size
            peak = self._peaks[column] = max(self._peaks[column], share)
            fallen = peak * _SHARE_WINDOW_RECORDS >= _PEAK_RECORDS and share * _FALL <= peak
            if fallen or self._records[column] >= self._burst_records:
                self._ended[column] = True
                ended.append(labels[column])
        return ended

    def state(self) -> StateTree:
        return {
            "labels": list(self._index),
            "records": torch.tensor(self._records, dtype=torch.int64),
            "peaks": torch.tensor(self._peaks, dtype=torch.float64),
            "ended": torch.tensor(self._ended, dtype=torch.bool),
            "step_classes": torch.tensor([len(step) for step in self._window], dtype=torch.int64),
            "step_class": torch.tensor([column for step in self._window for column in step], dtype=torch.int64),
            "step_records": torch.tensor(
                [records for step in self._window for records in step.values()], dtype=torch.int64
            ),
        }

    def load_state(self, state: StateTree) -> None:
        self._index = {}
        self._records, self._peaks, self._ended, self._window_records = [], [], [], []
        self._window.clear()
        self._window_total = 0
        for label in cast(list[str], state["labels"]):
            self._column(label)
        self._records = cast(Tensor, state["records"]).tolist()
        self._peaks = cast(Tensor, state["peaks"]).tolist()
        self._ended = cast(Tensor, state["ended"]).tolist()
        runs = zip(
            cast(Tensor, state["step_class"]).tolist(), cast(Tensor, state["step_records"]).tolist(), strict=True
        )
        for classes in cast(list[int], cast(Tensor, state["step_classes"]).tolist()):
            self._enter(dict(next(runs) for _ in range(classes)))

    def _column(self, label: str) -> int:
        if label not in self._index:
            self._index[label] = len(self._index)
            self._records.append(0)
            self._peaks.append(0.0)
            self._ended.append(False)
            self._window_records.append(0)
        return self._index[label]

    def _enter(self, step: dict[int, int]) -> None:
        self._window.append(step)
        for column, records in step.items():
            self._window_records[column] += records
            self._window_total += records

    def _leave(self) -> set[int]:
        step = self._window.popleft()
        for column, records in step.items():
            self._window_records[column] -= records
            self._window_total -= records
        return set(step)
