"""The rules that are shipped, evaluated by a real Prometheus over a real stream that drifts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.observed_stream import PROMETHEUS_FOLDER, ObservedStream
from tests.deploy.promql_selectors import selectors

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


def rules(file: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED = {rule["record"]: rule for rule in rules(PROMETHEUS_FOLDER / "rules" / "recording.yml")}
ALERTS = {rule["alert"]: rule for rule in rules(PROMETHEUS_FOLDER / "rules" / "alerts.yml")}
SELECTORS = sorted({found for rule in ALERTS.values() for found in selectors(rule["expr"])})


def test_the_selectors_of_an_expression_are_found() -> None:
    assert selectors(
        '(up == 0) * on (job, instance) group_left (stream) rate(palimpsest_a_total{x="up", y="1"}[5m] offset 1h)'
    ) == ['palimpsest_a_total{x="up", y="1"}', "up"]
    assert selectors("max by (stream, role) (instance:palimpsest_a:sum) > 3 * process_b_seconds") == [
        "instance:palimpsest_a:sum",
        "process_b_seconds",
    ]
    for name, rule in ALERTS.items():
        assert selectors(rule["expr"]), name


@pytest.mark.kafka
def test_every_target_is_up(observed_stream: ObservedStream) -> None:
    targets = observed_stream.prometheus.targets()
    assert {target["labels"]["job"] for target in targets} == set(observed_stream.targets)
    assert [target["lastError"] for target in targets if target["health"] != "up"] == []


@pytest.mark.kafka
@pytest.mark.parametrize("name", RECORDED)
def test_every_recording_rule_has_something_to_say(observed_stream: ObservedStream, name: str) -> None:
    """The expression itself, and what was recorded of it, of this stream."""
    prometheus = observed_stream.prometheus
    assert prometheus.wait_for(RECORDED[name]["expr"])
    recorded = prometheus.wait_for(name)
    assert {series.labels["stream"] for series in recorded} == {observed_stream.stream}
    assert not all(math.isnan(series.value) for series in recorded)


@pytest.mark.kafka
@pytest.mark.parametrize("selector", SELECTORS)
def test_what_an_alert_looks_at_is_there(observed_stream: ObservedStream, selector: str) -> None:
    assert observed_stream.prometheus.wait_for(selector)


@pytest.mark.kafka
def test_every_rule_is_evaluated_without_an_error(observed_stream: ObservedStream) -> None:
    """Two series where there must be one are only found where there are data."""
    observed_stream.prometheus.wait_for("instance:palimpsest_build:info")
    loaded = observed_stream.prometheus.rules()
    assert sorted(rule["name"] for rule in loaded) == sorted([*RECORDED, *ALERTS])
    for rule in loaded:
        observed_stream.prometheus.query(rule["query"])
        assert (rule["name"], rule["health"], rule.get("lastError")) == (rule["name"], "ok", None)
