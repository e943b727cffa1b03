"""Per-class series of a learner: how well each class is known, what was forgotten of it, from how many samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from consumers.class_labels import OTHER, worst_and_rest
from pipeline.evaluation.forgetting import EvaluationReport


class ClassMetrics(Collector):
    """Per-class series, made anew from the newest evaluation at each scrape, so that none is ever half updated.

    At most `limit` classes have series of their own, the ones the model does worst on; the others share `other` (their
    mean accuracy and forgetting, their sum of samples): a stream of a thousand classes must not drown Prometheus.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shown: tuple[Mapping[str, float], Mapping[str, float], Mapping[str, int], Mapping[str, int]]
        self._shown = {}, {}, {}, {}

    def show(self, report: EvaluationReport, replay: Mapping[str, int]) -> None:
        """Show this evaluation and these counts of replayable samples from now on."""
        entries = {entry.name: entry for entry in report.classes}
        named, rest = worst_and_rest(
            {name: entry.accuracy for name, entry in entries.items()}, self._limit, is_shared=len(replay) > self._limit
        )
        accuracy = {name: entries[name].accuracy for name in named}
        forgetting = {name: entries[name].forgetting for name in named}
        held_out = {name: entries[name].n for name in named}
        if rest:
            held_out[OTHER] = sum(entries[name].n for name in rest)
            accuracy[OTHER] = sum(entries[name].accuracy for name in rest) / len(rest)
            forgetting[OTHER] = sum(entries[name].forgetting for name in rest) / len(rest)
        counts: dict[str, int] = {}
        for name, count in replay.items():
            key = name if name in accuracy or len(replay) <= self._limit else OTHER
            counts[key] = counts.get(key, 0) + count
        self._shown = accuracy, forgetting, held_out, counts

    def collect(self) -> Iterable[Metric]:
        """Called by each scrape, from the server's thread."""
        accuracy, forgetting, held_out, replay = self._shown
        yield self._family("class_accuracy_ratio", "Hold-out accuracy of a class.", accuracy)
        yield self._family(
            "class_forgetting_ratio", "Best hold-out accuracy of a class so far minus the one now.", forgetting
        )
        yield self._family("class_held_out_samples", "Held-out samples that a class's accuracy is of.", held_out)
        yield self._family("replay_samples", "Samples of a class in the reservoir.", replay)

    @staticmethod
    def _family(name: str, text: str, values: Mapping[str, float]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"palimpsest_{name}", text, labels=["class_name"])
        for class_name, value in values.items():
            family.add_metric([class_name], value)
        return family

    def describe(self) -> Iterator[Metric]:
        """Nothing to check for duplicates at registration."""
        yield from ()
