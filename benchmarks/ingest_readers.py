"""Who reads a topic in `ingest`: the learner but for its updates, a bare poll, and the shortest script there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from kafka import KafkaConsumer, TopicPartition
from PIL import Image

from consumers import topics
from consumers.decode_ahead import DecodeAhead, Idle
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.process_settings import StreamSettings
from consumers.record_source import read_records
from deploy.settled_objects import settled
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.learner import UpdateReport
from pipeline.micro_batch import MicroBatch
from pipeline.sample import Decoded
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StreamLearner
from pipeline.user_error import UserError

READERS = ("ours", "raw", "script")

_POLL_SECONDS = 0.25
# A reader that gets nothing for so long has lost records, and would wait for ever.
_PATIENCE_SECONDS = 60.0
# Stages are timed on so many records at most: they lie in memory all at once, decoded.
_STAGE_RECORDS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One reader's way through the topic."""

    records: int
    seconds: float
    processor_seconds: float  # of all threads of the reader's process

    @property
    def records_per_second(self) -> float:
        return self.records / self.seconds

    @property
    def processor_microseconds(self) -> float:
        """Per record."""
        return 1e6 * self.processor_seconds / self.records


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What became of the records of a turn of ours; together they are all."""

    trainable: int
    held_out: int
    duplicates: int
    dead: int
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Microseconds of the processor a record, in a single thread: the least of all repeats."""

    decode: float  # RecordDecoder
    batch: float  # BatchAssembler, MicroBatch.x, and what else a step does around its update
    script_decode: float  # what `script` decodes with


class IntakeOnly(StreamLearner):
    """The learner, but for its updates: batches are put together as for one, and what they hold is taken in."""

    def __init__(self, settings: LearnerSettings) -> None:
        super().__init__(settings)
        self._trainable = self._duplicates = self._dead = self._batches = 0

    def _learn(self, batch: MicroBatch) -> tuple[MicroBatch, UpdateReport | None]:
        """What the learner's own hands to an update."""
        if batch.trainable:
            x, labels = batch.x, batch.labels
            subjects = np.array(batch.subjects, dtype=np.int64)
            assert len(x) == len(labels) == len(subjects), f"{len(x)} rows, {len(labels)} labels"
        self._trainable += len(batch.trainable)
        self._duplicates += len(batch.duplicates)
        self._dead += len(batch.dead)
        self._batches += 1
        return batch, None

    @property
    def intake(self) -> Intake:
        return Intake(
            trainable=self._trainable,
            held_out=self.records_held_out,
            duplicates=self._duplicates,
            dead=self._dead,
            batches=self._batches,
        )


# The readers


class _Clock:
    """Times a reader from here until it has taken all records."""

    def __init__(self, records: int) -> None:
        self._records = records
        self._taken = 0
        self._processor_began = time.process_time()
        self._began = self._heard_at = time.perf_counter()

    @property
    def goes_on(self) -> bool:
        if self._taken >= self._records:
            return False
        if time.perf_counter() - self._heard_at > _PATIENCE_SECONDS:
            raise UserError(f"only {self._taken} of {self._records} records came; look at the broker's log, and repeat")
        return True

    def took(self, records: int) -> None:
        if records:
            self._taken += records
            self._heard_at = time.perf_counter()

    def turn(self) -> Turn:
        assert self._taken == self._records, f"{self._taken} records were read, {self._records} had been sent"
        return Turn(
            records=self._taken,
            seconds=time.perf_counter() - self._began,
            processor_seconds=time.process_time() - self._processor_began,
        )


def read_ours(kafka: KafkaSettings, stream: str, records: int) -> tuple[Turn, Intake]:
    """As consumers/learner_process.py reads; the last, partial batch is flushed."""
    settings, learner = StreamSettings(), IntakeOnly(LearnerSettings())
    with KafkaRecordSource(kafka, topics.check_samples_topic(kafka, stream).partitions) as source:
        ahead = DecodeAhead(
            source,
            RecordDecoder(learner.settings.input).decode,
            capacity_records=settings.decode_ahead_records,
            poll_seconds=settings.poll_seconds,
        )
        with settled():
            clock = _Clock(records)
            with ahead:
                while clock.goes_on:
                    taken = ahead.take(settings.poll_seconds)
                    if isinstance(taken, Idle):
                        continue
                    for decoded in taken:
                        if learner.add(decoded):
                            learner.step(learner.assembler.take())
                    clock.took(len(taken))
                while learner.flush() is not None:
                    pass
                turn = clock.turn()
    return turn, learner.intake


def raw_options(bootstrap_servers: str) -> dict[str, Any]:
    """What makes a fetch cost what it costs ours; tests/benchmarks/test_ingest.py holds the two together."""
    return {
        "bootstrap_servers": bootstrap_servers.split(","),
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "check_crcs": True,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
        "fetch_max_wait_ms": 100,
    }


def read_raw(bootstrap_servers: str, topic: str, records: int) -> Turn:
    """`poll`, and nothing with what it gives."""
    return _poll_all(bootstrap_servers, topic, records, None)


def read_as_script(bootstrap_servers: str, topic: str, records: int) -> Turn:
    """`poll`, and an array of each value."""
    return _poll_all(bootstrap_servers, topic, records, array_of)


def array_of(value: bytes) -> npt.NDArray[Any]:
    """What a script of ten lines would do with a value."""
    if value.startswith(b"\x93NUMPY"):
        return np.asarray(np.load(BytesIO(value)))
    return np.asarray(Image.open(BytesIO(value)).convert("RGB"))


def _poll_all(bootstrap_servers: str, topic: str, records: int, use: Callable[[bytes], object] | None) -> Turn:
    consumer = KafkaConsumer(**raw_options(bootstrap_servers))
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        clock = _Clock(records)
        while clock.goes_on:
            for polled in consumer.poll(timeout_ms=int(1000 * _POLL_SECONDS)).values():
                if use is not None:
                    for record in polled:
                        use(record.value)
                clock.took(len(polled))
        return clock.turn()
    finally:
        consumer.close(autocommit=False)


def time_stages(kafka: KafkaSettings, stream: str, repeats: int) -> Stages:
    """On the first records of the topic."""
    with KafkaRecordSource(kafka, topics.check_samples_topic(kafka, stream).partitions) as source:
        begin, end = source.beginning_offsets(), source.end_offsets()
        end = {partition: min(offset, begin[partition] + _STAGE_RECORDS) for partition, offset in end.items()}
        records = list(read_records(source, begin, end))
    values = [record.value or b"" for record in records]
    decoder = RecordDecoder(LearnerSettings().input)
    decoded = [decoder.decode(record) for record in records]

    def assemble() -> None:
        learner = IntakeOnly(LearnerSettings())
        for each in decoded:
            if learner.add(each):
                learner.step(learner.assembler.take())

    def least(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(repeats):
            began = time.process_time()
            work()
            seconds.append(time.process_time() - began)
        return 1e6 * min(seconds) / len(records)

    def decode() -> Decoded | None:
        last = None
        for record in records:
            last = decoder.decode(record)
        return last

    def decode_as_script() -> None:
        for value in values:
            array_of(value)

    return Stages(decode=least(decode), batch=least(assemble), script_decode=least(decode_as_script))
