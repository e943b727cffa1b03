"""A sample stream -> topics, at a pace, with a report of what arrived."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from consumers import kafka_connection, topics
from consumers.kafka_settings import KafkaSettings
from pipeline.user_error import UserError
from producers.sample_stream import OutgoingRecord, SampleStream

# Batches fill for this long: a record of 300 bytes sent alone would cost a request each.
LINGER_MS = 20
BATCH_BYTES = 256 * 1024
# PNG and JPEG are packed already, but the headers, most of a small record, are not.
COMPRESSION = "lz4"
# A broker that restarts is back within this; what is still not delivered then is said to be lost.
DELIVERY_TIMEOUT_MS = 60_000
SETTLE_SECONDS = 70.0  # longer than the delivery timeout, so that the reason comes from there
CLOSE_SECONDS = 5.0  # after a failure: what has not gone by now does not go
PROGRESS_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProduceProgress:
    """How far it is."""

    delivered: int  # acknowledged by all replicas that must
    sent: int  # delivered ones and those under way
    total: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProduceReport:
    """What arrived."""

    labelled: int
    unlabelled: int
    total: int  # that there were to send
    seconds: float
    stopped: bool  # before the end, by `stop`

    @property
    def delivered(self) -> int:
        return self.labelled + self.unlabelled


def produce(
    stream: SampleStream,
    *,
    stream_name: str,
    kafka: KafkaSettings,
    numbers: range | None = None,
    partitions: int = 1,
    records_per_second: float | None = None,
    on_progress: Callable[[ProduceProgress], object] | None = None,
    stop: threading.Event | None = None,
) -> ProduceReport:
    """Send the stream: labelled records to `<name>.samples`, the others to `<name>.unlabelled`. `numbers`: those of
    these alone; default: all.

    1. Make the topics that are missing, with `partitions`.
    2. Record by record: stop if asked to, wait until it is due, send it to the next partition of its topic in turn.
       Several partitions keep the order within each.
    3. Wait until all that was sent is acknowledged.

    The order of sending is kept, and a batch that is sent again is not doubled (idempotent producer). Raises
    `UserError` where the brokers cannot be reached or do not take a record; it says how many had arrived.
    """
    if records_per_second is not None and not records_per_second > 0:
        raise UserError(f"--rate is a number of records per second above 0; got {records_per_second}")
    stop = stop or threading.Event()
    numbers = range(len(stream)) if numbers is None else numbers
    # 1.
    names = {True: topics.samples(stream_name), False: topics.unlabelled(stream_name)}
    topics.ensure_source_topics(kafka, stream_name, partitions=partitions)
    producer = kafka_connection.producer(
        kafka,
        linger_ms=LINGER_MS,
        batch_size=BATCH_BYTES,
        compression_type=COMPRESSION,
        delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
    )
    deliveries = _Deliveries()
    try:
        turns = {labelled: _Turn(producer, name) for labelled, name in names.items()}
        # 2.
        started = shown = time.monotonic()
        sent = 0
        for record in map(stream.record, numbers):
            now = time.monotonic()
            if on_progress is not None and now - shown >= PROGRESS_SECONDS:
                shown = now
                on_progress(deliveries.progress(sent, len(numbers), now - started))
            if records_per_second is not None and (early_seconds := started + sent / records_per_second - now) > 0:
                stop.wait(early_seconds)
            if stop.is_set():
                break
            deliveries.check()
            turns[record.labelled].send(record, deliveries)
            sent += 1
        # 3.
        deliveries.settle(sent)
        seconds = time.monotonic() - started
        assert deliveries.count == sent, (
            f"{sent - deliveries.count} of {sent} records were neither delivered nor refused"
        )
    except kafka_errors.KafkaError as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"records to {names[True]} were not delivered ({reason}); {deliveries.count} of {len(numbers)} had been; "
            f"see to the brokers at {kafka_connection.bootstrap_servers(kafka)}, then produce again"
        ) from error
    finally:
        _close(producer)
    if on_progress is not None:
        on_progress(deliveries.progress(sent, len(numbers), seconds))
    return ProduceReport(
        labelled=deliveries.labelled,
        unlabelled=deliveries.unlabelled,
        total=len(numbers),
        seconds=seconds,
        stopped=sent < len(numbers),
    )


class _Turn:
    """A topic's partitions, one after the other, so that the seed alone decides where a record goes."""

    def __init__(self, producer: KafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._partitions = sorted(producer.partitions_for(topic))
        self._sent = 0

    def send(self, record: OutgoingRecord, deliveries: _Deliveries) -> None:
        partition = self._partitions[self._sent % len(self._partitions)]
        self._sent += 1
        event = dataclasses.replace(record.event, time_seconds=time.time())
        try:
            future = self._producer.send(self._topic, value=event.data, headers=event.headers(), partition=partition)
        except kafka_errors.MessageSizeTooLargeError as error:
            raise UserError(
                f"{event.subject} has {len(event.data)} bytes, more than a record may have ({error}); make it smaller"
            ) from error
        future.add_callback(deliveries.delivered, record.labelled)
        future.add_errback(deliveries.failed)


def _close(producer: KafkaProducer) -> None:
    """Close, also where records are left that nobody takes: what came of them is told already."""
    try:
        producer.close(timeout=CLOSE_SECONDS)
    except kafka_errors.KafkaError:
        # kafka-python 3.0.12 flushes first, and where that fails leaves its thread running, which would try for ever.
        producer._sender.force_close()
        producer._sender.join(CLOSE_SECONDS)


class _Deliveries:
    """What the brokers acknowledged. The client's sender thread tells, or ours where it was quicker than we are."""

    def __init__(self) -> None:
        self._settled = threading.Condition()
        self.labelled = 0
        self.unlabelled = 0
        self._awaited: int | None = None
        self._failure: BaseException | None = None

    @property
    def count(self) -> int:
        return self.labelled + self.unlabelled

    def delivered(self, labelled: bool, _metadata: Any) -> None:
        with self._settled:
            if labelled:
                self.labelled += 1
            else:
                self.unlabelled += 1
            if self.count == self._awaited:
                self._settled.notify_all()

    def failed(self, error: BaseException) -> None:
        with self._settled:
            self._failure = self._failure or error
            self._settled.notify_all()

    def settle(self, sent: int) -> None:
        """Wait until all of `sent` are delivered, or raise what the first failure was.

        Why not the producer's `flush`: in kafka-python 3.0.12 it fails ("Future not done") when the brokers refuse a
        batch as too large and the client goes on to send it in two, as it should.
        """
        with self._settled:
            self._awaited = sent
            self._settled.wait_for(lambda: self._failure is not None or self.count == sent, SETTLE_SECONDS)
        self.check()

    def check(self) -> None:
        """Raise what the first failed delivery failed with."""
        if self._failure is not None:
            raise self._failure

    def progress(self, sent: int, total: int, seconds: float) -> ProduceProgress:
        return ProduceProgress(delivered=self.count, sent=sent, total=total, seconds=seconds)
