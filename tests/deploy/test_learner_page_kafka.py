"""The page of a real learner on a real broker: GET / and GET /history beside what it did."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consumers.message_sender import send_message
from consumers.promotion_events import promoted
from deploy.embedded_kafka import EmbeddedKafka
from deploy.learning import open_learner
from deploy.settings import load_settings
from model_store.promotion_history import new_promotion
from tests.deploy.streams import kafka, send, settings_file

pytestmark = pytest.mark.kafka

DEADLINE_SECONDS = 60.0
NO_REGISTRY = "registry: {enabled: false}\n"


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def history_when(url: str, is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        told: dict[str, Any] = json.loads(get(f"{url}/history"))
        if is_there(told):
            return told
        assert time.monotonic() < deadline, told["events"]
        time.sleep(0.05)


def test_the_page_of_a_learner_that_runs(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> None:
    send(kafka_broker, stream_name, 600)
    settings = load_settings(settings_file(tmp_path, kafka_broker, f"{NO_REGISTRY}snapshots: {{every_records: 100}}\n"))
    with open_learner(stream=stream_name, state=tmp_path / "state", settings=settings) as opened:
        url = opened.metrics_url
        assert url is not None
        before = json.loads(get(f"{url}/history"))
        assert (before["stream"], before["records"], before["course"]["at"]) == (stream_name, 0, [])
        report = opened.process.run(stop=threading.Event(), until_idle_seconds=0.5)
        learner = opened.process.learner
        told = history_when(url, lambda told: len(told["events"]["lines"]) >= len(learner.class_names))
        assert get(url).startswith("<!doctype html>")
        assert json.loads(get(f"{url}/status"))["records_consumed"] == report.records
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(f"{url}/nothing")
        with refused.value as answer:
            listed = answer.read().decode()
        assert {"/,", "/history", "/status", "/metrics,"} <= set(listed.split()), listed
        # Somebody else tells something too.
        send_message(
            kafka(kafka_broker), promoted(stream_name, new_promotion(by="ada", from_version=None, to_version=7))
        )
        later = history_when(url, lambda told: told["events"]["lines"][-1]["kind"] == "promoted")
    points = learner.forgetting.points
    assert told["records"] == learner.records_consumed == 600
    assert told["course"]["at"] == [point.at_records for point in points]
    assert told["course"]["accuracy"] == [pytest.approx(point.average_accuracy, abs=5e-5) for point in points]
    assert {entry["name"]: entry["replay"] for entry in told["classes"]} == learner.replay_counts()
    new = [line for line in told["events"]["lines"] if line["kind"] == "new_class"]
    assert {line["text"] for line in new} == {f"class {name} is new" for name in learner.class_names}
    assert told["events"]["problem"] is None
    assert later["events"]["lines"][-1]["text"] == "version 7 is promoted by ada"
    # The next one begins with the history of the state.
    with open_learner(stream=stream_name, state=tmp_path / "state", settings=settings) as opened:
        again = json.loads(get(f"{opened.metrics_url}/history"))
    assert again["course"] == told["course"]


def test_another_branch_asks_for_no_events(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> None:
    """What happens to it is seen all the same, and beside the main one."""
    send(kafka_broker, stream_name, 300)
    file = settings_file(tmp_path, kafka_broker, NO_REGISTRY)
    settings = load_settings(file)
    with open_learner(stream=stream_name, state=tmp_path / "main", settings=settings) as opened:
        opened.process.run(stop=threading.Event(), until_idle_seconds=0.2)
    beside = settings.model_copy(
        update={"page": type(settings.page)(baseline_state=tmp_path / "main", baseline_title="the main one")}
    )
    with open_learner(stream=stream_name, state=tmp_path / "b", settings=beside, branch="what-if") as opened:
        opened.process.run(stop=threading.Event(), until_idle_seconds=0.2)
        told = json.loads(get(f"{opened.metrics_url}/history"))
    assert told["branch"] == "what-if"
    assert {line["kind"] for line in told["events"]["lines"]} >= {"new_class"}
    assert (told["baseline"]["title"], told["baseline"]["branch"]) == ("the main one", "main")
    assert told["baseline"]["course"]["at"] == told["course"]["at"]
    assert not [thread for thread in threading.enumerate() if thread.name == "page-events"]
