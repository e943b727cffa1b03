"""Predictors killed -9 under load while versions are promoted back and forth: every request answered exactly once."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from consumers import kafka_connection, topics
from consumers.answers import Answer, parse_answer
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.record_source import read_records
from consumers.topics import topic_partitions
from deploy.embedded_kafka import EmbeddedKafka
from deploy.promoting import EventTeller
from model_store.mlflow_registry import MlflowRegistry
from model_store.promotion_steps import Promoter
from pipeline.record import Record
from tests.faults.fault_plan import Fault, FaultPlan
from tests.faults.learner_runs import ForkServer, LearnerRun
from tests.model_store.tiny_servable import payload, request

PROMOTIONS = 20
PARTITIONS = 4
REQUESTS_PER_SECOND = 100
# From the alias to the answers of an instance: the look at MLflow, the download, the load, on a machine that is busy.
# Some four of the twenty-one versions are promoted in such a time.
SWAP_SECONDS = 8.0
DEADLINE_SECONDS = 120.0
OPEN = {"predict.begun", "predict.sent", "predict.offsets_added"}


@dataclass(frozen=True)
class Promoted:
    """A version, and between which moments its promotion took effect, Unix time in seconds."""

    version: int
    not_before: float
    not_after: float


class Load:
    """Requests at a steady pace until it is left; `sent` are their ids."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent: list[str] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        producer = kafka_connection.producer(self._settings)
        futures = []
        while not self._over.wait(1 / REQUESTS_PER_SECOND):
            number = len(self.sent)
            headers = [("ce_id", b"r-%06d" % number), ("content-type", b"application/x-npy")]
            value = payload(1.0, 0.0) if number % 2 else payload(0.0, 1.0)
            futures.append(producer.send(self._topic, value, headers=headers, partition=number % PARTITIONS))
            self.sent.append(f"r-{number:06d}")
        for future in futures:
            future.get(30)
        producer.close()


class Predictors:
    """Three instances that share a folder of versions. Two are killed, and started again at once: before their own look
    at MLflow they serve what the third one has put there."""

    def __init__(
        self, server: ForkServer, broker: EmbeddedKafka, stream: str, tracking_uri: str, folder: Path, seed: int
    ) -> None:
        self._server, self._folder = server, folder
        self._random = random.Random(seed)
        self._arguments = ["predict", "--stream", stream, "--models", folder / "models", "--port", 0]
        self._arguments += ["--bootstrap-servers", broker.bootstrap_servers, "--tracking-uri", tracking_uri]
        self._runs: dict[str, LearnerRun] = {}
        self._started = 0
        self.kills = self.kills_in_transactions = 0

    def start(self, instance: str, *, to_die: bool) -> LearnerRun:
        """`to_die`: by itself, inside one of its next transactions."""
        self._started += 1
        faults: tuple[Fault, ...] = ()
        if to_die:
            point = self._random.choice(sorted(OPEN))
            faults = (Fault(point=point, nth=self._random.randint(1, 10)),)
        plan = FaultPlan(journal=self._folder / f"journal-{self._started}", faults=faults)
        out = self._folder / f"out-{self._started}"
        environment = {"PALIMPSEST_PREDICTOR__LOOK_SECONDS": "0.5"}
        run = self._server.start([*self._arguments, "--instance", instance], plan, out, environment)
        self._runs[instance] = run
        return run

    def kill(self, instance: str) -> None:
        """-9, at whatever it is doing, or where its plan said."""
        run = self._runs[instance]
        run.kill()
        self.kills += 1
        points = [line["point"] for line in run.journal if str(line.get("point", "")).startswith("predict.")]
        if points and points[-1] in OPEN:
            self.kills_in_transactions += 1

    def stop(self) -> None:
        for run in self._runs.values():
            run.kill()


@contextmanager
def predictors(
    server: ForkServer, broker: EmbeddedKafka, stream: str, tracking_uri: str, folder: Path
) -> Iterator[Predictors]:
    running = Predictors(server, broker, stream, tracking_uri, folder, seed=0)
    try:
        yield running
    finally:
        running.stop()


def read_all(settings: KafkaSettings, topic: str) -> list[Record]:
    """Committed ones."""
    _, partitions = topic_partitions(settings, topic)
    with KafkaRecordSource(settings, partitions) as source:
        return list(read_records(source, source.beginning_offsets(), source.end_offsets()))


def answers_in(settings: KafkaSettings, topic: str) -> list[Answer]:
    return [answer for answer in map(parse_answer, read_all(settings, topic)) if answer is not None]


def champions_between(history: list[Promoted], since: float, until: float) -> set[int]:
    """The versions that may have been champion at some moment of it."""
    ends = [*[later.not_after for later in history[1:]], float("inf")]
    return {each.version for each, end in zip(history, ends, strict=True) if each.not_before <= until and end >= since}


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_every_request_is_answered_once_by_a_champion_however_often_predictors_are_killed(
    fork_server: ForkServer, kafka_broker: EmbeddedKafka, stream_name: str, tracking_uri: str, tmp_path: Path
) -> None:
    """1. Versions, topics. 2. Load, promotions, kills. 3. All is answered. 4. Once, and by whom."""
    # 1.
    settings = KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers)
    registry = MlflowRegistry(tracking_uri)
    for number in range(1, PROMOTIONS + 2):
        registry.register(request(tmp_path / "servable", number, stream=stream_name))
    registry.set_alias(stream_name, "champion", 1)
    promoter = Promoter(registry, stream_name, EventTeller(settings, stream_name).promoted)
    history = [Promoted(1, time.time(), time.time())]
    topics.ensure_report_topics(settings, stream_name)
    asked, answered = topics.requests(stream_name), topics.predictions(stream_name)
    with kafka_connection.admin(settings) as admin:
        admin.create_topics({asked: {"num_partitions": PARTITIONS, "replication_factor": 1}})
        admin.wait_for_topics([asked])
    rounds = random.Random(1)
    with predictors(fork_server, kafka_broker, stream_name, tracking_uri, tmp_path) as running:
        for instance in ("a", "b", "c"):
            running.start(instance, to_die=False).wait_for_event("serving")
        # 2.
        with Load(settings, asked) as load:
            for round in range(PROMOTIONS):
                version = round + 2
                before = time.time()
                found = registry.find(stream_name, version)
                assert found is not None
                moved = promoter.promote(found, by="test", forced=True, figures={})
                assert moved.told
                history.append(Promoted(version, before, time.time()))
                time.sleep(rounds.uniform(1.0, 2.5))  # a kill may come at any time
                instance = "ab"[round % 2]
                running.kill(instance)
                running.start(instance, to_die=rounds.random() < 0.9)
            for instance in ("a", "b"):
                running.kill(instance)
                running.start(instance, to_die=False)
        # 3.
        sent = set(load.sent)
        deadline = time.monotonic() + DEADLINE_SECONDS
        answers = answers_in(settings, answered)
        while len({answer.request_id for answer in answers}) < len(sent):
            assert time.monotonic() < deadline, f"{len(answers)} of {len(sent)} answered"
            time.sleep(1.0)
            answers = answers_in(settings, answered)
    # 4.
    print(
        f"{len(sent)} requests, {PROMOTIONS} promotions, {running.kills} kills, "
        f"{running.kills_in_transactions} of them inside open transactions"
    )
    assert Counter(answer.request_id for answer in answers) == Counter(sent)
    assert running.kills_in_transactions >= 8
    assert {answer.label for answer in answers} == {"no", "köln"}
    assert len({answer.version for answer in answers}) > PROMOTIONS / 2
    arrived = {
        (record.header("ce_id") or b"").decode(): record.timestamp_ms / 1000 for record in read_all(settings, asked)
    }
    for answer in answers:
        since, until = arrived[answer.request_id] - SWAP_SECONDS, answer.time_seconds
        assert answer.version in champions_between(history, since, until), answer
