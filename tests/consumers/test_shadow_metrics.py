"""What a scrape shows of champion and challenger."""

from __future__ import annotations

import math
import subprocess

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumers.shadow_metrics import ShadowMetrics
from pipeline.evaluation.delayed_labels import DelayedLabels
from tests.system_package import require_program

Series = dict[tuple[str, ...], float]


def page(metrics: ShadowMetrics) -> bytes:
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry)


def samples(metrics: ShadowMetrics) -> dict[str, Series]:
    """{name without the prefix: {values of its labels, in the order of their names reversed: value}}."""
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(page(metrics).decode()):
        for sample in family.samples:
            key = tuple(sample.labels[name] for name in sorted(sample.labels, reverse=True))
            found.setdefault(sample.name.removeprefix("palimpsest_shadow_"), {})[key] = sample.value
    return found


def told() -> DelayedLabels:
    """Both answer eight requests; the challenger is better on owls and worse on cats."""
    labels = DelayedLabels(horizon_seconds=100.0, most_open=100, window=100)
    answers = [
        ("cat", "cat", "cat"),
        ("cat", "cat", "dog"),
        ("dog", "dog", "dog"),
        ("dog", "cat", "cat"),
        ("owl", "cat", "owl"),
        ("owl", "cat", "owl"),
        ("fox", "fox", "fox"),
        (None, "cat", "cat"),
    ]
    for number, (truth, champion, challenger) in enumerate(answers):
        labels.answered(str(number), "champion", 1, champion, 0.0)
        labels.answered(str(number), "challenger", 2, challenger, 0.0)
        if truth is not None:
            labels.labelled(str(number), truth, 1.0)
    labels.labelled("7", "cat", 101.0)
    return labels


def test_what_is_shown() -> None:
    metrics = ShadowMetrics(50)
    metrics.show(told(), 3)
    assert samples(metrics) == {
        "answers_total": {("champion",): 8, ("challenger",): 8},
        "labelled_total": {("champion",): 7, ("challenger",): 7},
        "accuracy_ratio": {("champion",): 4 / 7, ("challenger",): 5 / 7},
        "class_accuracy_ratio": {
            ("champion", "cat"): 1.0,
            ("champion", "dog"): 0.5,
            ("champion", "owl"): 0.0,
            ("champion", "fox"): 1.0,
            ("challenger", "cat"): 0.5,
            ("challenger", "dog"): 0.5,
            ("challenger", "owl"): 1.0,
            ("challenger", "fox"): 1.0,
        },
        "class_difference_ratio": {("cat",): -0.5, ("dog",): 0.0, ("owl",): 1.0, ("fox",): 0.0},
        "agreement_ratio": {(): 5 / 8},
        "late_labels_total": {(): 1},
        "dropped_total": {("answers",): 0, ("labels",): 0},
        "log_cuts_total": {(): 3},
    }


def test_the_worst_classes_have_series_and_the_rest_share_one() -> None:
    metrics = ShadowMetrics(2)
    metrics.show(told(), 0)
    found = samples(metrics)
    assert found["class_accuracy_ratio"] == {  # owls for the champion's sake, cats for the challenger's
        ("champion", "cat"): 1.0,
        ("champion", "owl"): 0.0,
        ("champion", "other"): 0.75,
        ("challenger", "cat"): 0.5,
        ("challenger", "owl"): 1.0,
        ("challenger", "other"): 0.75,
    }
    assert found["class_difference_ratio"] == {("cat",): -0.5, ("dog",): 0.0, ("other",): 0.5}


def test_what_is_not_known_is_not_shown_as_zero() -> None:
    found = samples(ShadowMetrics(50))
    assert found["answers_total"] == found["labelled_total"] == {("champion",): 0, ("challenger",): 0}
    assert all(math.isnan(value) for value in found["accuracy_ratio"].values())
    assert math.isnan(found["agreement_ratio"][()])
    assert "class_accuracy_ratio" not in found


def test_a_version_that_answers_no_more_is_not_shown_as_if_it_did() -> None:
    labels, metrics = told(), ShadowMetrics(50)
    labels.answered("8", "champion", 1, "cat", 150.0)
    labels.advance(160.0)
    metrics.show(labels, 0)
    found = samples(metrics)
    assert found["accuracy_ratio"][("champion",)] == 4 / 7
    assert math.isnan(found["accuracy_ratio"][("challenger",)])
    assert math.isnan(found["agreement_ratio"][()])


def test_promtool_finds_nothing_to_complain_about() -> None:
    promtool = require_program("promtool", package="prometheus")
    metrics = ShadowMetrics(50)
    metrics.show(told(), 0)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page(metrics), capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "", "")
