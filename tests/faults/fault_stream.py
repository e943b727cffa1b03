"""Logs with everything in them that a learner must tell apart: good records, repeats, and bad ones of several kinds."""

from __future__ import annotations

import random
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import confluent_kafka

from consumers import topics
from consumers.kafka_settings import KafkaSettings
from pipeline.codec.cloud_event import CloudEvent
from pipeline.sample import DeadLetterReason
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_stream import SampleStream
from producers.schedules.blurred import Blurred
from tests.ended_transactions import wait_until_transactions_ended

Headers = list[tuple[str, bytes]]
DEADLINE_SECONDS = 60.0
_MARKERS_SECONDS = 20.0  # less than the time after which the brokers end what was left open: that is a fault here
# Long enough that each partition's first record is good: the first good one says what the stream's samples look like.
_CLEAN_BEGINNING = 32
_BAD_SHARE = 0.04
_REPEAT_SHARE = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One record as it is given to the brokers. `fate` is good, repeat, or the reason why it is a dead letter."""

    value: bytes | None
    headers: Headers
    id: str
    fate: str = "good"


@dataclass(slots=True, kw_only=True)
class FaultLog:
    """What lies in `<stream>.samples`. Places are (partition, offset)."""

    stream: str
    good: list[str] = field(default_factory=list)  # ids, in the order of writing
    repeats: set[tuple[int, int]] = field(default_factory=set)
    bad: dict[tuple[int, int], str] = field(default_factory=dict)  # -> reason
    ends: list[int] = field(default_factory=list)  # the next offset of each partition
    bytes: int = 0  # of all values

    @property
    def records(self) -> int:
        return sum(self.ends)


def mixed(records: int, *, seed: int, classes_per_step: int = 2) -> Iterator[Written]:
    """Blurred digits; among them, chosen by the seed, repeats of near and far ones, and bad records of each kind."""
    draws = random.Random(seed)
    digits = SampleStream(
        open_dataset("digits", DatasetOptions()),
        Blurred(),
        seed=seed,
        records=records,
        classes_per_step=classes_per_step,
    )
    sent: list[Written] = []
    kinds = 0
    for number in range(records):
        draw = draws.random()
        if number < _CLEAN_BEGINNING or draw >= _BAD_SHARE + _REPEAT_SHARE:
            event = digits.record(len(sent)).event
            written = Written(value=event.data, headers=event.headers(), id=event.id)
            sent.append(written)
        elif draw < _BAD_SHARE:
            written = _spoilt(sent[-1], number, kinds)
            kinds += 1
        else:  # mostly of the newest: those that stand in the same batch, or in the one before
            original = sent[-1 - min(int(draws.expovariate(0.1)), len(sent) - 1)]
            written = Written(value=original.value, headers=original.headers, id=original.id, fate="repeat")
        yield written


def one_class(records: int) -> Iterator[Written]:
    """Nothing but sevens."""
    data = open_dataset("digits", DatasetOptions())
    items = [item for item, label in enumerate(data.labels) if data.classes[int(label)] == "7"]
    for number in range(records):
        payload, content_type = data.payload(items[number % len(items)])
        event = CloudEvent(
            id=f"seven-{number}", source="tests", type="sample", content_type=content_type, data=payload, label="7"
        )
        yield Written(value=payload, headers=event.headers(), id=event.id)


def make(kafka: KafkaSettings, stream: str, *, partitions: int = 1) -> FaultLog:
    """The stream's topics, with nothing in them."""
    topics.ensure_source_topics(kafka, stream, partitions=partitions)
    return FaultLog(stream=stream, ends=[0] * partitions)


def write(kafka: KafkaSettings, log: FaultLog, records: Iterable[Written]) -> None:
    """Record by record to the next partition. Nobody else may write there."""
    topic = topics.samples(log.stream)
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "message.max.bytes": 8 << 20,
            "log_level": 3,
        }
    )
    problems: list[str] = []

    def delivered(place: tuple[int, int], error: Any, message: Any) -> None:
        if error is not None or (message.partition(), message.offset()) != place:
            problems.append(f"{error or 'another place'} instead of {place}")

    for record in records:
        partition = log.records % len(log.ends)
        place = partition, log.ends[partition]
        log.ends[partition] += 1
        log.bytes += len(record.value or b"")
        while True:
            try:
                producer.produce(
                    topic,
                    value=record.value,
                    headers=[*record.headers],
                    partition=place[0],
                    on_delivery=partial(delivered, place),
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
        match record.fate:
            case "good":
                log.good.append(record.id)
            case "repeat":
                log.repeats.add(place)
            case reason:
                log.bad[place] = reason
    assert producer.flush(DEADLINE_SECONDS) == 0, "not all records were delivered"
    assert not problems, problems[0]


def write_unlabelled(kafka: KafkaSettings, stream: str, records: int) -> None:
    """Images of digits and nothing beside them."""
    data = open_dataset("digits", DatasetOptions())
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 3})
    for number in range(records):
        payload, content_type = data.payload(number % len(data))
        event = CloudEvent(
            id=f"unlabelled-{number}", source="tests", type="sample", content_type=content_type, data=payload
        )
        producer.produce(topics.unlabelled(stream), value=payload, headers=[*event.headers()])
    assert producer.flush(DEADLINE_SECONDS) == 0, "not all records were delivered"


def read_committed(kafka: KafkaSettings, topic: str) -> list[tuple[dict[str, bytes], bytes | None]]:
    """Headers and value of every record that a reader of committed records finds in the topic's one partition."""
    # One that a killed learner left open is ended by its next start, not by the brokers after their time.
    wait_until_transactions_ended(kafka, topic, _MARKERS_SECONDS)
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": f"tests-{''.join(random.choices(string.ascii_lowercase, k=12))}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "log_level": 3,
        }
    )
    try:
        partition = confluent_kafka.TopicPartition(topic, 0, confluent_kafka.OFFSET_BEGINNING)
        consumer.assign([partition])
        found: list[tuple[dict[str, bytes], bytes | None]] = []
        while True:
            message = consumer.poll(DEADLINE_SECONDS)
            assert message is not None, f"{topic} could not be read to its end"
            error = message.error()
            if error is None:
                headers: Any = message.headers() or []
                found.append((dict(headers), message.value()))
                continue
            assert error.code() == confluent_kafka.KafkaError._PARTITION_EOF, error
            # A transaction that was left open would hide what comes after it.
            _, end = consumer.get_watermark_offsets(partition, DEADLINE_SECONDS)
            assert message.offset() == end, f"{topic} is hidden from {message.offset()} on by an open transaction"
            return found
    finally:
        consumer.close()


def _spoilt(good: Written, number: int, kind: int) -> Written:
    """The record with a fault, another one for each kind."""
    value, headers, reason = _FAULTS[kind % len(_FAULTS)](good)
    own_id = f"spoilt-{number}".encode()
    renamed = [(name, own_id if name == "ce_id" and content != _NOT_UTF8 else content) for name, content in headers]
    return Written(value=value, headers=renamed, id=f"spoilt-{number}", fate=str(reason))


def _with(headers: Sequence[tuple[str, bytes]], **changed: bytes | None) -> Headers:
    """With these headers changed (`_` stands for `-`, but in ce_...); None: left out."""
    names = {name if name.startswith("ce_") else name.replace("_", "-"): value for name, value in changed.items()}
    kept = [(name, names.get(name, value)) for name, value in headers]
    return [(name, value) for name, value in kept if value is not None]


_NOT_UTF8 = b"\xff"
_NPY_HEAD = b"\x93NUMPY\x01\x00v\x00"
_FAULTS: list[Any] = [
    lambda good: (good.value, _with(good.headers, ce_label=None), DeadLetterReason.NO_LABEL),
    lambda good: (good.value, _with(good.headers, ce_label=b""), DeadLetterReason.EMPTY_LABEL),
    lambda good: (good.value, _with(good.headers, ce_label=b"\xff\xfe"), DeadLetterReason.LABEL_NOT_UTF8),
    lambda good: (good.value, _with(good.headers, ce_label=b"x" * 300), DeadLetterReason.LABEL_TOO_LONG),
    lambda good: (None, good.headers, DeadLetterReason.NO_PAYLOAD),
    lambda good: (b"", good.headers, DeadLetterReason.NO_PAYLOAD),
    lambda good: ((good.value or b"")[:40], good.headers, DeadLetterReason.BROKEN_IMAGE),
    lambda good: (good.value, _with(good.headers, content_type=b"application/x-unknown"),
                  DeadLetterReason.UNKNOWN_CONTENT_TYPE),
    lambda good: (b"text in a stream of images", _with(good.headers, content_type=b"text/plain"),
                  DeadLetterReason.WRONG_TYPE),
    lambda good: (_NPY_HEAD, _with(good.headers, content_type=b"application/x-npy"), DeadLetterReason.BROKEN_ARRAY),
    lambda good: (good.value, _with(good.headers, ce_id=_NOT_UTF8), DeadLetterReason.BAD_HEADER),
    lambda good: (b"x" * (70 * 1024), good.headers, DeadLetterReason.PAYLOAD_TOO_LARGE),
]  # fmt: skip
