"""Two versions on the same hold-outs: accuracy by class, forgetting, calibration, latency and size.

Both are judged on the same rows, so that what one of them finds hard, the other does too. A class that a version does
not know has accuracy 0 for it. Which classes a figure is about is the same for both:

    average accuracy     classes that at least one of the two knows
    worst class          classes that the champion knows: where it knows none, nothing can fall
    forgetting           the same: mean of max(0, best accuracy so far - accuracy now)
    calibration error    rows of the classes that both know: of others neither can be as sure as it should

Classes with fewer than `min_class_samples` rows stay out of all four. Without a champion: the challenger's own classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.classifier import Classifier
from pipeline.evaluation.calibration import expected_calibration_error
from pipeline.evaluation.hold_out import HoldOut
from pipeline.evaluation.latency import latencies_seconds
from pipeline.sample import InputSpec

_LATENCY_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFigures:
    """Of one version. None: nothing to judge it by. Accuracies, forgetting and calibration error: 0 to 1."""

    class_accuracies: Mapping[str, tuple[float, int]]  # {class: (accuracy, n)} of every class looked at, few or many
    average_accuracy: float | None
    worst_class: str | None
    worst_accuracy: float | None
    forgetting: float | None
    calibration_error: float | None
    latency_seconds: float  # median, of a single row
    parameters: int


@dataclass(frozen=True, slots=True)
class _Said:
    """Of the n rows of one class: how sure the version is of what it says, and whether that is right."""

    confidence_N: npt.NDArray[np.float32]
    correct_N: npt.NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        return float(self.correct_N.mean())


def compared_figures(
    champion: Classifier | None,
    challenger: Classifier,
    hold_out: HoldOut | None,
    best: Mapping[str, float],
    *,
    min_class_samples: int,
) -> tuple[VersionFigures | None, VersionFigures]:
    """(champion's, challenger's). `best`: {class: best accuracy so far}. `hold_out` None: latency and size alone.

    All take inputs of one spec.
    """
    theirs = set(challenger.class_names if champion is None else champion.class_names)
    known = theirs | set(challenger.class_names)
    held_out = [] if hold_out is None else [name for name in hold_out.classes if name in known]
    enough = [name for name in held_out if hold_out is not None and hold_out.count(name) >= min_class_samples]
    classifiers = [challenger] if champion is None else [champion, challenger]
    latencies = latencies_seconds(
        [classifier.predict_probabilities for classifier in classifiers],
        _some_rows(challenger.spec, hold_out, held_out),
    )
    figures = []
    for classifier, latency in zip(classifiers, latencies, strict=True):
        said = {} if hold_out is None else {name: _said(classifier, name, hold_out) for name in held_out}
        both = theirs.intersection(challenger.class_names)
        figures.append(
            _figures(
                said,
                averaged=enough,
                held_against=[name for name in enough if name in theirs],
                calibrated=[name for name in enough if name in both],
                best=best,
                latency_seconds=latency,
                parameters=sum(parameter.numel() for parameter in classifier.network.parameters()),
            )
        )
    return (None if champion is None else figures[0]), figures[-1]


def answers(classifier: Classifier) -> bool:
    """Whether it says something of a row at all: probabilities, and no NaN."""
    probabilities_1K = classifier.predict_probabilities(_any_row(classifier.spec))
    return bool(np.isfinite(probabilities_1K).all() and abs(float(probabilities_1K.sum()) - 1) < 1e-3)


def _figures(
    said: Mapping[str, _Said],
    *,
    averaged: Sequence[str],
    held_against: Sequence[str],
    calibrated: Collection[str],
    best: Mapping[str, float],
    latency_seconds: float,
    parameters: int,
) -> VersionFigures:
    accuracies = {name: of_class.accuracy for name, of_class in said.items()}
    worst = min(held_against, key=accuracies.__getitem__, default=None)
    forgotten = [max(0.0, best[name] - accuracies[name]) for name in held_against if name in best]
    rows = [said[name] for name in calibrated]
    return VersionFigures(
        class_accuracies={name: (accuracies[name], len(of_class.correct_N)) for name, of_class in said.items()},
        average_accuracy=statistics.fmean([accuracies[name] for name in averaged]) if averaged else None,
        worst_class=worst,
        worst_accuracy=None if worst is None else accuracies[worst],
        forgetting=statistics.fmean(forgotten) if forgotten else None,
        calibration_error=expected_calibration_error(
            np.concatenate([np.empty(0, np.float32), *(of_class.confidence_N for of_class in rows)]),
            np.concatenate([np.empty(0, np.bool_), *(of_class.correct_N for of_class in rows)]),
        ),
        latency_seconds=latency_seconds,
        parameters=parameters,
    )


def _said(classifier: Classifier, name: str, hold_out: HoldOut) -> _Said:
    probabilities_NK = classifier.predict_probabilities(hold_out.samples(name))
    column = classifier.class_names.index(name) if name in classifier.class_names else -1
    return _Said(probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1) == column)


def _some_rows(spec: InputSpec, hold_out: HoldOut | None, classes: Sequence[str]) -> npt.NDArray[np.generic]:
    """(n, ...), n at least 1: real ones where there are some."""
    if hold_out is None or not classes:
        return _any_row(spec)
    each = -(-_LATENCY_ROWS // len(classes))
    return np.concatenate([hold_out.samples(name)[:each] for name in classes])[:_LATENCY_ROWS]


def _any_row(spec: InputSpec) -> npt.NDArray[np.generic]:
    """(1, ...). Of ones: 0 is the padding of texts."""
    return np.ones((1, *spec.shape), dtype=spec.dtype)
