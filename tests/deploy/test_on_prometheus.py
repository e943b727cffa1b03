"""The rules and the dashboards that are shipped, asked of a real Prometheus over a real stream that drifts.

One file: the stream, its four processes and Prometheus are begun once for it, and end with it.
"""

from __future__ import annotations

import math
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumers import kafka_connection, topics
from pipeline.codec.image import encode_png
from tests.consumers.digit_records import digit_images
from tests.deploy.dashboard_files import Asked, all_asked, read_boards
from tests.deploy.observed_stream import PROMETHEUS_FOLDER, ObservedStream
from tests.deploy.promql_selectors import selectors
from tests.deploy.streams import kafka

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


def rules(file: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED = {rule["record"]: rule for rule in rules(PROMETHEUS_FOLDER / "rules" / "recording.yml")}
ALERTS = {rule["alert"]: rule for rule in rules(PROMETHEUS_FOLDER / "rules" / "alerts.yml")}
SELECTORS = sorted({found for rule in ALERTS.values() for found in selectors(rule["expr"])})

# What this stream cannot show, and why. Whatever is here must show nothing indeed.
NOT_HERE = {
    "Palimpsest / Pipeline / Memory of the GPU / A": "learning runs on the CPU",
}
# Events that come here by luck or not at all: what they count is there, which is shown here; and they fire on made-up
# series (test_dashboard_events.py).
SELDOM = {
    "Palimpsest / Forgetting / event Drift": "the detector may find none",
    "Palimpsest / Forgetting / event Expansion": "the jobs are consolidations",
}
# Once each: the events are the same on all dashboards.
ASKED = [pytest.param(one, id=one.where) for one in {one.expr: one for one in reversed(list(all_asked()))}.values()]
# As scrapes come once a second: Grafana makes $__rate_interval four of them, $__interval no shorter than one.
INTERVALS = {"__rate_interval": "4s", "__interval": "1s"}
LOOKED_BACK = "10m"
NEW_CLASS_RECORDS = 20


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


def wait_until_all_are_up(observed: ObservedStream) -> None:
    """One that could not answer within the second that a scrape has here is away until the next."""
    targets = len(observed.prometheus.targets())
    assert targets == 4, "learner, worker, champion and challenger"
    observed.prometheus.wait_for("up == 1", lambda found: len(found) == targets)


@pytest.mark.kafka
def test_every_target_is_up(observed_stream: ObservedStream) -> None:
    wait_until_all_are_up(observed_stream)
    targets = observed_stream.prometheus.targets()
    assert {target["labels"]["job"] for target in targets} == set(observed_stream.targets)


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


# -- the dashboards ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variables(observed_stream: ObservedStream) -> dict[str, str]:
    """As Grafana would have them with all processes chosen: found out by the dashboards' own questions."""
    board = next(iter(read_boards().values()))
    chosen: dict[str, str] = {}
    for variable in board["templating"]["list"]:
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", ""))
        if asked is None:
            continue
        selector = Asked(variable["name"], asked[1], instant=True).filled_in(chosen)
        wait_until_all_are_up(observed_stream)
        found = {series.labels.get(asked[2], "") for series in observed_stream.prometheus.wait_for(selector)} - {""}
        if variable["multi"]:
            found = {re.escape(value).replace("\\", "\\\\") for value in found}
            chosen[variable["name"]] = f"({'|'.join(sorted(found))})"
        else:
            (chosen[variable["name"]],) = found
    return {**chosen, **INTERVALS}


@pytest.fixture(scope="module")
def eventful(observed_stream: ObservedStream) -> Iterator[None]:
    """What comes seldom: a class of its own now, and from now on broken records and requests over HTTP."""
    images, _ = digit_images()
    _send(observed_stream, [(encode_png(image), "a digit") for image in images[:NEW_CLASS_RECORDS]])
    over = threading.Event()
    thread = threading.Thread(target=_go_on, args=(observed_stream, over), daemon=True)
    thread.start()
    yield
    over.set()
    thread.join(30)


@pytest.mark.kafka
def test_the_variables_find_the_stream_and_all_its_processes(
    observed_stream: ObservedStream, variables: dict[str, str]
) -> None:
    assert variables["stream"] == observed_stream.stream
    assert variables["branch"] == "main"
    scraped = {target["labels"]["instance"] for target in observed_stream.prometheus.targets()}
    assert len(scraped) == 4, "learner, worker, champion, challenger"
    assert {
        address for address in scraped if re.fullmatch(variables["instance"].replace("\\\\", "\\"), address)
    } == scraped


@pytest.mark.kafka
@pytest.mark.usefixtures("eventful")
@pytest.mark.parametrize("asked", ASKED)
def test_it_returns_data(observed_stream: ObservedStream, variables: dict[str, str], asked: Asked) -> None:
    """Of a figure: now. Of a curve or an event: at some moment of the last minutes."""
    expr = asked.filled_in(variables)
    if asked.where in SELDOM:
        expr, fires, none = expr.rpartition(" > 0")
        assert fires
        assert not none
    if not asked.instant:
        expr = f"max_over_time(({expr})[{LOOKED_BACK}:1s])"
    if asked.where in NOT_HERE:
        assert observed_stream.prometheus.query(expr) == [], f"it is there, although {NOT_HERE[asked.where]}"
        return
    found = observed_stream.prometheus.wait_for(expr)
    assert all(math.isfinite(series.value) for series in found), found


def test_what_is_excused_is_asked_for() -> None:
    assert {one.where for one in all_asked()} >= NOT_HERE.keys() | SELDOM.keys()


def _go_on(stream: ObservedStream, over: threading.Event) -> None:
    url = f"http://{stream.targets['palimpsest-predictor']}/predict"
    while not over.wait(1.0):
        _send(stream, [(b"no image", "7")])
        request = urllib.request.Request(url, data=b"no image", headers={"content-type": "image/png"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30).close()
        refused.value.close()


def _send(stream: ObservedStream, records: Sequence[tuple[bytes, str]]) -> None:
    """(payload, label) each."""
    with kafka_connection.producer(kafka(stream.broker)) as producer:
        for payload, label in records:
            headers = [("content-type", b"image/png"), ("ce_label", label.encode())]
            producer.send(topics.samples(stream.stream), payload, headers=headers).get(30)
