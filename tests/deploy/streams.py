"""Small real streams on a real broker, and what is left of them in state folders and topics."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from consumers import topics
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.record_source import read_records
from deploy.embedded_kafka import EmbeddedKafka
from deploy.learning import open_learner
from deploy.settings import load_settings
from pipeline.record import Partition
from producers.class_schedule import ClassSchedule
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_producer import produce
from producers.sample_stream import SampleStream
from producers.schedules.blurred import Blurred
from tests.ended_transactions import wait_until_transactions_ended

# Little to compute, much to see: evaluations, commits and versions within a few hundred records.
SMALL_LEARNER = """
learner:
  threads: 1
  device: cpu
  replay: {capacity: 60, draw_size: 16}
  evaluation: {every_records: 100, min_class_samples: 2, burst_records: 50, prequential_window: 100}
"""
SMALL = f"""{SMALL_LEARNER}
stream: {{poll_seconds: 0.05}}
metrics: {{port: 0}}
"""
# The same, of a learner that soon asks for a job.
ASKING_LEARNER = f"""{SMALL_LEARNER}
  restructuring: {{new_classes: 2, settle_records: 60, rest_records: 100, expand_below: null}}
stream: {{poll_seconds: 0.05}}
"""


def kafka(broker: EmbeddedKafka) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=broker.bootstrap_servers)


def settings_file(folder: Path, broker: EmbeddedKafka, more: str = "") -> Path:
    """`SMALL` with the way to the broker; a section in `more` is added, and stands in none of these."""
    file = folder / "settings.yaml"
    file.write_text(f"{SMALL}kafka: {{bootstrap_servers: '{broker.bootstrap_servers}'}}\n{more}")
    return file


def send(
    broker: EmbeddedKafka,
    stream_name: str,
    records: int | None,
    *,
    dataset: str = "digits",
    schedule: ClassSchedule | None = None,
    seed: int = 0,
    classes_per_step: int = 2,
    unlabelled_share: float = 0.0,
) -> SampleStream:
    """Blurred digits, unless told otherwise."""
    stream = SampleStream(
        open_dataset(dataset, DatasetOptions()),
        schedule or Blurred(),
        seed=seed,
        records=records,
        classes_per_step=classes_per_step,
        unlabelled_share=unlabelled_share,
    )
    produce(stream, stream_name=stream_name, kafka=kafka(broker))
    return stream


def learn(stream: str, state: Path, file: Path, *, max_records: int | None = None) -> int:
    """All that is there, or so much of it, by a learner with the settings of the file; how many records."""
    with open_learner(stream=stream, state=state, settings=load_settings(file)) as opened:
        return opened.process.run(stop=threading.Event(), until_idle_seconds=0.5, max_records=max_records).records


def events(broker: EmbeddedKafka, stream: str, kind: str) -> list[dict[str, Any]]:
    """What the stream's events of this kind say."""
    wait_until_transactions_ended(kafka(broker), topics.events(stream))
    with KafkaRecordSource(kafka(broker), [Partition(topics.events(stream), 0)]) as source:
        records = list(read_records(source, source.beginning_offsets(), source.end_offsets()))
    return [json.loads(record.value or b"") for record in records if record.key == kind.encode()]
