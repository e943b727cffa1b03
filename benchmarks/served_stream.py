"""What `benchmarks.serving` asks and reads: versions to serve, requests at a pace, answers with the time they came."""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.command_line import broker_at
from consumers import kafka_connection, topics
from consumers.answers import Answer, parse_answer
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.topics import topic_partitions
from model_store.mlflow_registry import MlflowRegistry
from model_store.registry import RegistrationRequest
from pipeline.classifier import Classifier
from pipeline.network import build_network
from pipeline.sample import InputSpec
from pipeline.settings import InputSettings, NetworkSettings

STREAM = "served"
_VERSIONS = 2
_CLASSES = tuple(f"class {number}" for number in range(10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A network, and what it is asked about."""

    spec: InputSpec
    network: Mapping[str, Any]
    content_type: str


KINDS: Mapping[str, Kind] = {
    "mlp": Kind(
        spec=InputSpec(kind="vector", shape=(784,)), network={"backbone": "mlp"}, content_type="application/x-npy"
    ),
    "resnet18": Kind(
        spec=InputSpec(kind="image", shape=(3, 32, 32)),
        network={"backbone": "resnet18", "options": {"width": 16}},
        content_type="image/png",
    ),
}


def payloads(kind: Kind, count: int, seed: int = 0) -> list[bytes]:
    """Random ones: what they hold costs the same as anything else."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        buffer = io.BytesIO()
        if kind.spec.kind == "image":
            pixels = generator.integers(0, 256, (*kind.spec.shape[1:], kind.spec.shape[0]), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
        else:
            np.save(buffer, generator.random(kind.spec.shape, dtype=np.float32))
        made.append(buffer.getvalue())
    return made


def classifier(kind: Kind, seed: int) -> Classifier:
    """Of weights as they are drawn: what is measured is how long it takes."""
    network = build_network(NetworkSettings.model_validate({**kind.network, "initial_columns": 16}), kind.spec, seed)
    return Classifier(network, _CLASSES, kind.spec, InputSettings())


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A broker, an MLflow with versions 1 and 2 of a model, and topics for what is asked and answered."""

    kafka: KafkaSettings
    registry: MlflowRegistry
    folder: Path


@contextmanager
def served(kind: Kind, partitions: int) -> Iterator[Served]:
    """The champion is version 1."""
    with tempfile.TemporaryDirectory() as name, broker_at(None) as kafka:
        folder = Path(name)
        registry = MlflowRegistry(f"sqlite:///{folder / 'mlflow.db'}")
        for number in range(1, _VERSIONS + 1):
            servable = folder / f"servable-{number}"
            classifier(kind, number).save(servable)
            registry.register(
                RegistrationRequest(
                    stream=STREAM,
                    state_id="benchmark",
                    snapshot_sha256=hashlib.sha256(str(number).encode()).hexdigest(),
                    offsets={},
                    classes=_CLASSES,
                    trigger="manual",
                    servable=servable,
                )
            )
        registry.set_alias(STREAM, "champion", 1)
        with kafka_connection.admin(kafka) as admin:
            asked = topics.requests(STREAM)
            admin.create_topics({asked: {"num_partitions": partitions, "replication_factor": 1}})
            admin.wait_for_topics([asked])
        topics.ensure_answers_topic(kafka, topics.predictions(STREAM), requests=asked)
        topics.ensure_report_topics(kafka, STREAM)
        yield Served(kafka=kafka, registry=registry, folder=folder)


@dataclass(slots=True)
class Reader:
    """Reads committed answers in a thread, for as long as it is entered: `seen` has each with the time it came at."""

    kafka: KafkaSettings
    seen: list[tuple[float, Answer]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Reader:
        _, partitions = topic_partitions(self.kafka, topics.predictions(STREAM))
        source = KafkaRecordSource(self.kafka, partitions)
        source.seek(source.end_offsets())

        def run() -> None:
            with source:
                while not self._over.is_set():
                    records = source.poll(2000, 0.2)
                    now = time.time()
                    self.seen += [(now, answer) for answer in map(parse_answer, records) if answer is not None]

        self._thread = threading.Thread(target=run)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join()

    def wait_for(self, count: int, seconds: float = 300.0) -> None:
        """Until so many answers came."""
        deadline = time.monotonic() + seconds
        while len(self.seen) < count:
            assert time.monotonic() < deadline, f"{len(self.seen)} of {count} answers came"
            time.sleep(0.01)


def ask(
    kafka: KafkaSettings, kind: Kind, values: list[bytes], *, partitions: int, rate: float | None, first: int = 0
) -> dict[str, float]:
    """Send them, at so many a second (None: as fast as it goes); {id: Unix time at which it was sent}."""
    sent: dict[str, float] = {}
    producer = kafka_connection.producer(kafka, linger_ms=0 if rate else 20)
    began = time.perf_counter()
    for number, value in enumerate(values):
        if rate is not None:
            ahead = began + number / rate - time.perf_counter()
            if ahead > 0:
                time.sleep(ahead)
        name = f"r-{first + number}"
        headers = [("ce_id", name.encode()), ("content-type", kind.content_type.encode())]
        sent[name] = time.time()
        producer.send(topics.requests(STREAM), value, headers=headers, partition=number % partitions)
    producer.flush()
    producer.close()
    return sent
