"""Small real streams on a real broker, and what is left of them in state folders and topics."""

from __future__ import annotations

from pathlib import Path

from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from producers.class_schedule import ClassSchedule
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_producer import produce
from producers.sample_stream import SampleStream
from producers.schedules.blurred import Blurred

# Little to compute, much to see: evaluations, commits and versions within a few hundred records.
SMALL = """
learner:
  threads: 1
  device: cpu
  replay: {capacity: 60, draw_size: 16}
  evaluation: {every_records: 100, min_class_samples: 2, burst_records: 50, prequential_window: 100}
stream: {poll_seconds: 0.05}
metrics: {port: 0}
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
) -> SampleStream:
    """Blurred digits, unless told otherwise."""
    stream = SampleStream(
        open_dataset(dataset, DatasetOptions()),
        schedule or Blurred(),
        seed=seed,
        records=records,
        classes_per_step=classes_per_step,
    )
    produce(stream, stream_name=stream_name, kafka=kafka(broker))
    return stream
