"""`palimpsest predict` on a real broker and a real MLflow."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from consumers import kafka_connection, topics
from consumers.kafka_record_source import KafkaRecordSource
from consumers.record_source import read_records
from consumers.topics import topic_partitions
from deploy.commands.predict import command
from deploy.embedded_kafka import EmbeddedKafka
from deploy.exit_codes import exit_code, one_line
from deploy.local_port import free_port
from model_store.mlflow_registry import MlflowRegistry
from model_store.tracking_uri import sqlite_file
from pipeline.classifier import Prediction
from tests.consumers.versions_world import register
from tests.deploy.command_line import DEADLINE_SECONDS, Running
from tests.deploy.streams import kafka, settings_file
from tests.model_store.tiny_servable import payload, tiny_classifier
from tests.waiting import wait_until

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

NPY = "application/x-npy"


class World:
    """A stream with two registered versions, the first of which is champion, and a topic of requests."""

    def __init__(self, broker: EmbeddedKafka, stream: str, tracking_uri: str, folder: Path) -> None:
        self.kafka, self.stream, self.tracking_uri = kafka(broker), stream, tracking_uri
        self.registry = MlflowRegistry(tracking_uri)
        for _ in range(3):
            register(self.registry, folder, tiny_classifier(), stream)
        self.registry.set_alias(stream, "champion", 1)
        with kafka_connection.admin(self.kafka) as admin:
            admin.create_topics({topics.requests(stream): {"num_partitions": 2, "replication_factor": 1}})
            admin.wait_for_topics([topics.requests(stream)])
        self._producer = kafka_connection.producer(self.kafka)
        self.file = settings_file(folder, broker, "predictor: {look_seconds: 0.5, threads: 1}\n")
        self.models = folder / "models"
        self._asked = 0

    def spoil(self, version: int) -> None:
        """Its weights in MLflow are not those that were registered."""
        found = self.registry.find(self.stream, version)
        assert found is not None
        assert found.snapshot_sha256 is not None
        database = sqlite_file(self.tracking_uri)
        assert database is not None
        (weights,) = database.parent.glob(f"**/{found.snapshot_sha256[:16]}/**/weights.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")

    def arguments(self, **changes: object) -> list[object]:
        given = {
            "stream": self.stream,
            "settings": self.file,
            "models": self.models,
            "instance": "one",
            "port": 0,
            "tracking-uri": self.tracking_uri,
        }
        options = {**given, **{name.replace("_", "-"): value for name, value in changes.items()}}
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def ask(self, *values: bytes) -> list[str]:
        """Their ids."""
        ids = []
        for value in values:
            ids.append(f"id-{self._asked}")
            headers = [("ce_id", ids[-1].encode()), ("content-type", NPY.encode())]
            self._producer.send(topics.requests(self.stream), value, partition=self._asked % 2, headers=headers).get(30)
            self._asked += 1
        return ids

    def answers(self, topic: str) -> dict[str, dict[str, Any]]:
        """By id; none twice."""
        _, partitions = topic_partitions(self.kafka, topic)
        found: dict[str, dict[str, Any]] = {}
        with KafkaRecordSource(self.kafka, partitions) as source:
            for record in read_records(source, source.beginning_offsets(), source.end_offsets()):
                asked = (record.header("ce_id") or b"").decode()
                assert asked not in found
                found[asked] = json.loads(record.value or b"")
        return found

    def answered(self, ids: list[str], topic: str | None = None) -> dict[str, dict[str, Any]]:
        """As soon as all of these are."""
        topic = topic or topics.predictions(self.stream)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not set(ids) <= (found := self.answers(topic)).keys():
            assert time.monotonic() < deadline, f"{found.keys()} of {ids}"
            time.sleep(0.05)
        return found

    def close(self) -> None:
        self._producer.close()


@pytest.fixture
def world(kafka_broker: EmbeddedKafka, stream_name: str, tracking_uri: str, tmp_path: Path) -> Iterator[World]:
    world = World(kafka_broker, stream_name, tracking_uri, tmp_path)
    yield world
    world.close()


def url_of(running: Running) -> str:
    running.wait_for_event("started")
    (started,) = (event for event in running.events if event["event"] == "started")
    return str(started["url"])


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def post(url: str, value: bytes) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/predict", value, {"Content-Type": NPY})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def ended(running: Running) -> dict[str, Any]:
    """By SIGTERM; what it said at last."""
    running.signal(signal.SIGTERM)
    assert running.end() == 0, "\n".join(running.lines)
    last: dict[str, Any] = running.events[-1]
    assert (last["event"], last["stopped_by"]) == ("stopped", "signal")
    return last


@pytest.mark.kafka
def test_it_answers_by_the_champion_follows_the_alias_and_goes_on_without_mlflow(world: World) -> None:
    values = [payload(0.0, 1.0), payload(1.0, 0.0), payload(-1.0, 2.5), b"no array"]
    said = tiny_classifier().predict([(value, NPY) for value in values])
    with Running("predict", *world.arguments()) as running:
        url = url_of(running)
        ids = world.ask(*values)
        found = world.answered(ids)
        for asked, value, wanted in zip(ids, values, said, strict=True):
            assert found[asked]["version"] == 1
            if isinstance(wanted, Prediction):
                assert (found[asked]["label"], found[asked]["role"]) == (wanted.label, "champion")
                assert found[asked]["probability"] == pytest.approx(wanted.probability)
                by_http = post(url, value)
                assert (by_http["label"], by_http["version"]) == (wanted.label, 1)
            else:
                assert found[asked]["error"]["reason"] == "broken_array"

        world.registry.set_alias(world.stream, "champion", 2)
        wait_until(lambda: json.loads(get(f"{url}/model"))["version"] == 2, DEADLINE_SECONDS)
        (asked,) = world.ask(values[0])
        assert world.answered([asked])[asked]["version"] == 2

        # one that is broken is refused, and the one before goes on
        world.spoil(3)
        world.registry.set_alias(world.stream, "champion", 3)
        running.wait_for_event("version_refused")
        (asked,) = world.ask(values[0])
        assert world.answered([asked])[asked]["version"] == 2
        assert 'palimpsest_model_refusals_total{role="champion"} 0.0' not in get(f"{url}/metrics")
        world.registry.set_alias(world.stream, "champion", 2)

        shown = get(f"{url}/metrics")
        assert 'palimpsest_served_version{role="champion"} 2.0' in shown
        assert get(f"{url}/readyz") == "ready\n"
        assert ended(running)["answered"] == 6
        served = [event["version"] for event in running.events if event["event"] == "serving"]
        assert served == [1, 2]

    # what was asked meanwhile is answered by the next one, though MLflow is away
    (asked,) = world.ask(values[1])
    away = world.arguments(tracking_uri=f"http://127.0.0.1:{free_port()}")
    with Running("predict", *away, env={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}) as running:
        assert world.answered([asked])[asked]["version"] == 2
        running.wait_for_event("waiting")
        (again,) = world.ask(values[0])
        assert world.answered([again])[again]["label"] == "köln"
        ended(running)
        waiting = [event["why"] for event in running.events if event["event"] == "waiting"]
        assert len(waiting) == 1
        assert "MLflow at http://127.0.0.1:" in waiting[0]


@pytest.mark.kafka
def test_the_challenger_answers_aside_and_shows_how_it_does(world: World) -> None:
    ids = world.ask(payload(0.0, 1.0), payload(1.0, 0.0))
    until_idle = ["--until-idle", "1"]
    with Running("predict", *world.arguments(role="challenger")) as running:
        url = url_of(running)
        found = world.answered(ids, topics.shadow(world.stream))
        assert {(answer["version"], answer["role"]) for answer in found.values()} == {(3, "challenger")}

        def shown() -> dict[str, float]:
            """Requests answered in each role, as the shadow's reader knows."""
            return {
                sample.labels["role"]: sample.value
                for family in text_string_to_metric_families(get(f"{url}/metrics"))
                for sample in family.samples
                if sample.name == "palimpsest_shadow_answers_total"
            }

        wait_until(lambda: shown().get("challenger") == 2, DEADLINE_SECONDS)
        with Running("predict", *world.arguments(instance="two"), *until_idle) as champion:
            assert champion.end() == 0, "\n".join(champion.lines)
            assert champion.events[-1] == champion.events[-1] | {
                "event": "stopped",
                "stopped_by": "idle",
                "answered": 2,
            }
        assert world.answered(ids).keys() == set(ids)
        wait_until(lambda: shown() == {"champion": 2, "challenger": 2}, DEADLINE_SECONDS)
        ended(running)


@pytest.mark.kafka
def test_what_the_user_can_put_right_is_one_line(world: World, tmp_path: Path) -> None:
    def ends(**changes: object) -> tuple[int, str]:
        done = CliRunner().invoke(command, list(map(str, world.arguments(**changes))))
        assert isinstance(done.exception, Exception), done.output
        return exit_code(done.exception) or 1, one_line(done.exception)  # as deploy/cli.py ends it

    requests = topics.requests(world.stream)
    code, line = ends(input="nowhere")
    assert (code, line.startswith("topic nowhere does not exist at ")) == (2, True)
    assert line.endswith("or check --input")
    code, line = ends(output=requests)
    assert (code, line) == (
        2,
        f"requests and answers are both {requests}: a predictor would answer itself; give another --output",
    )
    code, line = ends(instance="two words")
    assert (code, line.endswith("; choose another --instance")) == (2, True)
    code, line = ends(tracking_uri="nonsense")
    assert (code, "MLflow tracking URI 'nonsense' cannot be used" in line) == (2, True)
    (tmp_path / "file").touch()
    code, line = ends(models=tmp_path / "file" / "models")
    assert (code, line.endswith("give another --models")) == (2, True)
    code, line = ends(stream="a/b")
    assert (code, line.endswith("choose another --stream")) == (2, True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "champion.json").write_text('{"format_version": 1, "stream": "shoes"}')
    code, line = ends(models=other)
    assert (code, "holds versions of stream 'shoes'" in line) == (2, True)
