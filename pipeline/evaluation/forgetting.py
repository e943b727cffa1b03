"""Forgetting per class, over the course of a stream that tells nobody where a task ends.

a_c(t) = accuracy on class c's hold-out at evaluation t. Where an evaluation leaves classes out (turns.py), a_c now is
that of the newest one that did not.

    forgetting of c    = best a_c so far (now included, so it is never negative) - a_c now
    average forgetting = mean over the classes that an earlier evaluation has seen
    backward transfer  = mean of a_c now - a_c at the end of c's first burst

after Chaudhry et al. 2018 (arXiv:1801.10112) and Lopez-Paz and Ranzato 2017 (arXiv:1706.08840), with the end of a
class's first burst in the place of the end of its task.

Evaluations on fewer than `min_class_samples` samples are shown and stay out of the averages, and out of `best` as soon
as there is one on enough: the best of many evaluations on three samples is 1 by luck, and would stand for good. The
accuracy at the end of the burst is one measurement, not the best of many, so it counts whatever its n was.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pipeline.evaluation.accuracy_course import AccuracyCourse
from pipeline.evaluation.accuracy_history import AccuracyHistory, HistoryPoint
from pipeline.evaluation.first_burst import FirstBursts
from pipeline.settings import EvaluationSettings
from pipeline.state import StateTree


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassEvaluation:
    """One class at one evaluation. Accuracies and differences of them: 0 to 1."""

    name: str
    accuracy: float
    n: int  # held-out samples
    standard_error: float  # sqrt(a (1 - a) / n); 0 at a = 0 and a = 1, where it says nothing
    best: float
    forgetting: float  # best - accuracy, at least 0
    at_burst_end: float | None  # None: the first burst has not ended, or nothing was held out when it did
    in_averages: bool  # n is at least `min_class_samples`
    at_records: int  # records consumed when it was evaluated: before the report's where its turn was an earlier one


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """How all classes stand after an evaluation. An average over no class is None."""

    at_records: int  # records consumed by then
    classes: tuple[ClassEvaluation, ...]  # in order of their first evaluation
    average_accuracy: float | None
    average_forgetting: float | None
    backward_transfer: float | None
    worst_class: str | None  # of those in the averages the one with the lowest accuracy
    known_classes: int  # that had a record, evaluated or not


@dataclass(slots=True)
class _ClassHistory:
    accuracy: float = math.nan
    n: int = 0  # 0: it had no held-out samples at the newest evaluation
    best: float = math.nan
    counted: int = 0  # evaluations so far on enough samples
    at_burst_end: float = math.nan  # NaN: not measured
    at_records: int = -1  # of its newest evaluation; -1: it had none


class ForgettingHistory:
    """What every evaluation has to be compared with.

    Adoption keeps the best accuracies of the stretch that it abandons: `best` and `keep_best`.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self._min_class_samples = settings.min_class_samples
        self._bursts = FirstBursts(settings)
        self._classes: dict[str, _ClassHistory] = {}  # in order of first evaluation
        self._at_records: int | None = None  # of the newest evaluation
        self._history = AccuracyHistory()
        self._untold: list[str] = []  # bursts that ended since `burst_ended` was asked
        self._unmeasured: list[str] = []  # bursts that ended since the newest evaluation

    def observe(self, counts: Mapping[str, int]) -> None:
        """Records per class of one step of learning."""
        ended = self._bursts.observe(counts)
        self._untold += ended
        self._unmeasured += ended

    def burst_ended(self) -> list[str]:
        """The classes whose first burst has ended since this was last asked: a reason to evaluate at once."""
        ended, self._untold = self._untold, []
        return ended

    @property
    def evaluated_at(self) -> dict[str, int]:
        """{class: records consumed when it was last evaluated}."""
        return {label: history.at_records for label, history in self._classes.items() if history.at_records >= 0}

    @property
    def unmeasured(self) -> list[str]:
        """The classes whose first burst has ended since the newest evaluation; the next one has to measure them."""
        return list(self._unmeasured)

    def record(
        self, at_records: int, accuracies: Mapping[str, tuple[float, int]], left_out: Container[str] = ()
    ) -> EvaluationReport:
        """One evaluation: {class: (accuracy, n)}, n at least 1.

        `left_out`: classes with held-out samples whose turn it was not; all others are in `accuracies`.

        1. Each class's newest and best accuracy; those that were left out stay as they were.
        2. The accuracy of those whose first burst has ended since the evaluation before. One that has no held-out
           sample now is never measured: a later accuracy would be another quantity.
        3. The point for plots.
        """
        # 1.
        self._at_records = at_records
        for label, history in self._classes.items():
            if label not in left_out:
                history.n = 0
        for label, (accuracy, n) in accuracies.items():
            assert n >= 1, f"class {label!r} was evaluated on {n} samples"
            history = self._classes.setdefault(label, _ClassHistory())
            history.accuracy, history.n, history.at_records = accuracy, n, at_records
            enough = n >= self._min_class_samples
            if math.isnan(history.best) or (enough and not history.counted):
                history.best = accuracy
            elif enough or not history.counted:
                history.best = max(history.best, accuracy)
            history.counted += enough
        # 2.
        for label in self._unmeasured:
            if label in accuracies:
                self._classes[label].at_burst_end = accuracies[label][0]
        self._unmeasured = []
        # 3.
        report = self.newest_report()
        assert report is not None
        self._history.append(
            at_records,
            report.average_accuracy,
            report.average_forgetting,
            {entry.name: entry.accuracy for entry in report.classes},
        )
        return report

    def newest_report(self) -> EvaluationReport | None:
        """The newest evaluation again; None before the first."""
        if self._at_records is None:
            return None
        evaluated = {label: history for label, history in self._classes.items() if history.n}
        classes = tuple(self._class_evaluation(label, history) for label, history in evaluated.items())
        averaged = [entry for entry in classes if entry.in_averages]
        return EvaluationReport(
            at_records=self._at_records,
            classes=classes,
            average_accuracy=_mean([entry.accuracy for entry in averaged]),
            average_forgetting=_mean(
                [entry.forgetting for entry in averaged if evaluated[entry.name].counted > 1]  # an earlier one, too
            ),
            backward_transfer=_mean(
                [entry.accuracy - entry.at_burst_end for entry in averaged if entry.at_burst_end is not None]
            ),
            worst_class=min(averaged, key=lambda entry: entry.accuracy).name if averaged else None,
            known_classes=len(self._classes.keys() | set(self._bursts.classes)),
        )

    @property
    def points(self) -> list[HistoryPoint]:
        """The course of the accuracies, for plots; bounded, oldest first."""
        return self._history.points

    @property
    def course(self) -> AccuracyCourse:
        """The same for another thread, at the cost of a copy of references."""
        return self._history.course

    @property
    def best(self) -> dict[str, float]:
        """{class: best accuracy} of the classes evaluated on enough samples."""
        return {label: history.best for label, history in self._classes.items() if history.counted}

    def keep_best(self, best: Mapping[str, float]) -> None:
        """Let no best accuracy be below these: what was once known counts as known, on whichever branch."""
        for label, accuracy in best.items():
            history = self._classes.setdefault(label, _ClassHistory())
            history.best = max(history.best, accuracy) if history.counted else accuracy
            history.counted = max(history.counted, 1)

    def state(self) -> StateTree:
        classes = list(self._classes.values())
        return {
            "labels": list(self._classes),
            "accuracy": torch.tensor([history.accuracy for history in classes], dtype=torch.float64),
            "n": torch.tensor([history.n for history in classes], dtype=torch.int64),
            "best": torch.tensor([history.best for history in classes], dtype=torch.float64),
            "counted": torch.tensor([history.counted for history in classes], dtype=torch.int64),
            "at_burst_end": torch.tensor([history.at_burst_end for history in classes], dtype=torch.float64),
            "evaluated_at": torch.tensor([history.at_records for history in classes], dtype=torch.int64),
            "at_records": self._at_records,
            "untold": list(self._untold),
            "unmeasured": list(self._unmeasured),
            "bursts": self._bursts.state(),
            "history": self._history.state(),
        }

    def load_state(self, state: StateTree) -> None:
        columns = [cast(Tensor, state[name]).tolist() for name in ("accuracy", "n", "best", "counted", "at_burst_end")]
        labels = cast(list[str], state["labels"])
        self._classes = {label: _ClassHistory(*values) for label, *values in zip(labels, *columns, strict=True)}
        self._at_records = cast("int | None", state["at_records"])
        if "evaluated_at" in state:
            for history, at_records in zip(
                self._classes.values(), cast(Tensor, state["evaluated_at"]).tolist(), strict=True
            ):
                history.at_records = at_records
        else:  # a state from before evaluations left classes out
            for history in self._classes.values():
                history.at_records = self._at_records if history.n and self._at_records is not None else -1
        self._untold = list(cast(list[str], state["untold"]))
        self._unmeasured = list(cast(list[str], state["unmeasured"]))
        self._bursts.load_state(cast(StateTree, state["bursts"]))
        self._history.load_state(cast(StateTree, state["history"]))

    def _class_evaluation(self, label: str, history: _ClassHistory) -> ClassEvaluation:
        return ClassEvaluation(
            name=label,
            accuracy=history.accuracy,
            n=history.n,
            standard_error=math.sqrt(history.accuracy * (1 - history.accuracy) / history.n),
            best=history.best,
            forgetting=max(0.0, history.best - history.accuracy),
            at_burst_end=None if math.isnan(history.at_burst_end) else history.at_burst_end,
            in_averages=history.n >= self._min_class_samples,
            at_records=history.at_records,
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
