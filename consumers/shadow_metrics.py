"""The shadow's Prometheus metrics: how champion and challenger do on the same requests.

Gauges are of the versions that answer now, over their newest answers (the settings' `window`): they follow the present,
and are NaN where nothing is known. Counters begin with the horizon that the reader goes back at its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from consumers.class_labels import OTHER, worst_and_rest
from pipeline.evaluation.delayed_labels import DelayedLabels
from pipeline.evaluation.shadow_scores import ROLES, Role
from pipeline.evaluation.version_score import VersionScore

Label = TypeVar("Label", bound=str)


class ShadowMetrics(Collector):
    """Made anew by `show`, whole, and handed to each scrape as it then is: none sees half of it."""

    def __init__(self, max_class_labels: int) -> None:
        """Of each family at most so many classes have a series of their own, the worst ones; the others share `other`
        (their mean)."""
        self._limit = max_class_labels
        self._families: list[Metric] = []
        self.show(DelayedLabels(horizon_seconds=1.0, most_open=1, window=1), 0)

    def show(self, labels: DelayedLabels, cuts: int) -> None:
        """Show these scores from now on; `cuts`: how often a log did not hold what was to be read next."""
        scores = {role: _current(labels, role) for role in ROLES}
        champion, challenger = labels.current("champion"), labels.current("challenger")
        pair = labels.scores.pair(champion, challenger) if champion is not None and challenger is not None else None
        differences = {
            name: tally.difference
            for name, tally in ({} if pair is None else pair.recent_classes()).items()
            if tally.difference is not None
        }
        self._families = [
            _counter("answers", "Requests answered, by role.", ["role"], labels.scores.answered),
            _counter("labelled", "Answers whose true label came in time.", ["role"], labels.scores.labelled),
            _gauge(
                "accuracy_ratio",
                "Accuracy of the version in a role on its newest labelled answers.",
                ["role"],
                {(role,): None if score is None else score.recent().accuracy for role, score in scores.items()},
            ),
            _gauge(
                "class_accuracy_ratio",
                "The same by true class.",
                ["role", "class_name"],
                self._class_accuracies(scores),
            ),
            _gauge(
                "class_difference_ratio",
                "The challenger's accuracy on a class minus the champion's, on the same requests.",
                ["class_name"],
                {(name,): value for name, value in self._worst(differences).items()},
            ),
            _gauge(
                "agreement_ratio",
                "Share of the newest requests to which both gave the same answer.",
                [],
                {(): None if pair is None else pair.recent_agreement()},
            ),
            _counter("late_labels", "True labels that came after the horizon.", [], {"": labels.late}),
            _counter(
                "dropped",
                "Answers (or labels without an answer) given up for want of memory while they waited.",
                ["what"],
                labels.dropped,
            ),
            _counter("log_cuts", "How often a log did not hold what was to be read next.", [], {"": cuts}),
        ]

    def collect(self) -> Iterable[Metric]:
        """Called by each scrape, from the server's thread."""
        return self._families

    def describe(self) -> Iterator[Metric]:
        """Nothing to check for duplicates at registration."""
        yield from ()

    def _class_accuracies(self, scores: Mapping[Role, VersionScore | None]) -> dict[tuple[str, ...], float]:
        """The classes on which either does worst, and the same ones of both: they are there to be compared."""
        found: dict[Role, dict[str, float]] = {
            role: {name: tally.right / tally.labelled for name, tally in score.recent_classes().items()}
            for role, score in scores.items()
            if score is not None
        }
        lowest: dict[str, float] = {}
        for accuracies in found.values():
            for name, accuracy in accuracies.items():
                lowest[name] = min(accuracy, lowest.get(name, accuracy))
        named, rest = worst_and_rest(lowest, self._limit)
        return {
            (role, name): accuracy
            for role, accuracies in found.items()
            for name, accuracy in _grouped(accuracies, named, rest).items()
        }

    def _worst(self, values: Mapping[str, float]) -> dict[str, float]:
        return _grouped(values, *worst_and_rest(values, self._limit))


def _current(labels: DelayedLabels, role: Role) -> VersionScore | None:
    version = labels.current(role)
    return None if version is None else labels.scores.version(role, version)


def _grouped(values: Mapping[str, float], named: Iterable[str], rest: Iterable[str]) -> dict[str, float]:
    """Those of `named` that have a value, and the mean of those of `rest`."""
    grouped = {name: values[name] for name in named if name in values}
    others = [values[name] for name in rest if name in values]
    if others:
        grouped[OTHER] = sum(others) / len(others)
    return grouped


def _counter(name: str, text: str, label_names: list[str], values: Mapping[Label, int]) -> Metric:
    """`values` by the one label, or by "" where there is none."""
    family = CounterMetricFamily(f"palimpsest_shadow_{name}", text, labels=label_names)
    for label, value in values.items():
        family.add_metric([label] if label_names else [], value)
    return family


def _gauge(name: str, text: str, label_names: list[str], values: Mapping[tuple[str, ...], float | None]) -> Metric:
    """NaN for what is not known: 0 would read as an accuracy of nothing."""
    family = GaugeMetricFamily(f"palimpsest_shadow_{name}", text, labels=label_names)
    for labels, value in values.items():
        family.add_metric(list(labels), math.nan if value is None else value)
    return family
