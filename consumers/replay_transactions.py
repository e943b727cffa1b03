"""Where a replay's transactions go: records to the samples, and how far the dead letters were replayed, or neither."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from kafka import ConsumerGroupMetadata, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors

from consumers import kafka_connection, topics
from consumers.acls import refusal
from consumers.commit_log import BrokerUnavailable, LearnerFenced
from consumers.events import event_data, event_message
from consumers.kafka_nullable import sendable_headers, sendable_value
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.kafka_transactions import (
    REFUSED,
    TRANSACTION_TIMEOUT_SECONDS,
    attempt_seconds,
    close_at_once,
    is_fenced,
    transactional_producer,
    within,
)
from consumers.message_sender import send_message, writing_to
from consumers.record_source import read_records
from consumers.replay_position import ReplayPosition, parse_position
from model_store.fault_points import fault_point
from model_store.snapshot import OutboxMessage
from pipeline.record import Partition, Record
from pipeline.user_error import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.state import Json

_EVENT = "dead_letters_replayed"
_BRANCH = topics.MAIN_BRANCH  # whose dead letters they are: only main writes some
_ASK_SECONDS = 30.0
_AGAIN = "start the replay again: what was sent is known, and nothing is sent twice"

Positions = Mapping[Partition, ReplayPosition]


class ReplayFenced(LearnerFenced):
    """A newer replay of the same dead letters has taken over. This one sends nothing more."""


def replay_group(stream: str) -> str:
    """The replay's transactional id, which is also the name of its group."""
    return f"palimpsest.{stream}.dead-letters.replay"


class ReplayTransactions:
    """Not thread-safe. One that fails is of no further use: the next replay finds out what became of it."""

    def __init__(self, settings: KafkaSettings, stream: str, partitions: Sequence[Partition], topic_id: str) -> None:
        """`partitions` and `topic_id`: of the topic of dead letters. Nothing is contacted yet."""
        self._settings = settings
        self._stream = stream
        self._group = replay_group(stream)
        self._partitions = tuple(partitions)
        self._topic_id = topic_id
        self._producer: KafkaProducer | None = None

    def begin(self, stop: threading.Event | None = None) -> None:
        """Fence an older replay that is still alive, and let its open transaction come to an end. `stop` ends the wait.

        Raises `UserError`, `BrokerUnavailable` and `ReplayFenced`.
        """
        self._producer = transactional_producer(self._settings, self._group)
        with self._errors():
            # The client's own limit is a minute, in which it hears no stop.
            within(TRANSACTION_TIMEOUT_SECONDS, self._producer.init_transactions, stop)

    def positions(self, stop: threading.Event | None = None) -> dict[Partition, ReplayPosition]:
        """How far each partition was replayed; one that never was is not in it. A look: nobody is fenced.

        1. The group's offsets. Their reader waits for a transaction that is just being committed.
        2. The brokers forget those of a group that was idle for a week (`offsets.retention.minutes`). Every replay that
           ends by itself therefore tells an event as well, and where the group knows nothing, the newest one says it.
           What one that was killed had sent since that event is not known after such a week, and is sent again.

        Raises `UserError`, `BrokerUnavailable` and `SourceUnavailable`; `stop` ends the waits with one of these.
        """
        # 1.
        found: dict[Partition, ReplayPosition] = {}

        def ask() -> None:
            with self._group_reader() as reader:
                for partition in self._partitions:
                    theirs = TopicPartition(partition.topic, partition.number)
                    entry: Any = reader.committed(theirs, metadata=True, timeout_ms=int(_ASK_SECONDS * 1000))
                    if entry is not None and entry.offset >= 0:
                        found[partition] = parse_position(entry.offset, entry.metadata)

        with self._errors():
            within(None, ask, stop)
        # 2.
        return found or self._told_positions(stop)

    def send(self, records: Sequence[Record], positions: Positions) -> None:
        """One transaction.

        1. Open it, send the records (each to its `partition` of its `topic`), and wait until the brokers have all of
           them: a batch that fails later would let the client restart the transaction without the rest.
        2. Add the positions.
        3. Commit.

        Raises `ReplayFenced`, `BrokerUnavailable` (whether it went through the next replay finds out), `UserError`.
        """
        producer = self._producer
        assert producer is not None, "begin() first"

        def steps() -> None:
            # 1.
            producer.begin_transaction()
            futures = []
            for record in records:
                with self._refusals(record):
                    # No timestamp of theirs: by an old one retention would delete the record before it is learnt.
                    futures.append(
                        producer.send(
                            record.topic,
                            key=record.key,
                            value=sendable_value(record.value),
                            headers=sendable_headers(record.headers),
                            partition=record.partition,
                        )
                    )
            for record, future in zip(records, futures, strict=True):
                with self._refusals(record):
                    future.get()
            fault_point("replay.sent")
            # 2.
            offsets = {
                TopicPartition(partition.topic, partition.number): OffsetAndMetadata(
                    position.offset, position.metadata, -1
                )
                for partition, position in positions.items()
            }
            producer.send_offsets_to_transaction(offsets, ConsumerGroupMetadata(self._group))
            # 3.
            producer.commit_transaction()
            fault_point("replay.committed")

        with self._errors():
            within(attempt_seconds(sum(record.size_bytes for record in records)), steps)

    def tell(self, positions: Positions, *, sent: Mapping[str, int], skipped: Mapping[str, int]) -> None:
        """The event of a replay that has come to its end. Raises `BrokerUnavailable`; everything was sent then, too.

        Not within the transactions: one that a kill leaves open would hold back the events behind it, among them
        decisions that a learner reads back when it starts after a fall-back.
        """
        message = self._event(positions, sent, skipped)
        with self._errors(), writing_to(message.topic):
            send_message(self._settings, message)

    def close(self) -> None:
        """Let go of the brokers; may be called twice."""
        producer, self._producer = self._producer, None
        if producer is not None:
            close_at_once(producer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _event(self, positions: Positions, sent: Mapping[str, int], skipped: Mapping[str, int]) -> OutboxMessage:
        told: list[Json] = [
            [partition.number, position.offset, position.metadata] for partition, position in sorted(positions.items())
        ]
        return event_message(
            stream=self._stream,
            branch=_BRANCH,
            kind=_EVENT,
            key=hashlib.sha256(json.dumps([self._topic_id, told]).encode()).hexdigest()[:16],
            data={"topic_id": self._topic_id, "positions": told, "sent": dict(sent), "skipped": dict(skipped)},
            time_seconds=time.time(),
        )

    def _told_positions(self, stop: threading.Event | None) -> dict[Partition, ReplayPosition]:
        """Those of the newest event about this very topic; one that was made anew since was never replayed."""
        _, events = topics.topic_partitions(self._settings, topics.events(self._stream))
        found: dict[Partition, ReplayPosition] = {}
        if not events:
            return found
        with KafkaRecordSource(self._settings, events) as source:
            for record in read_records(source, source.beginning_offsets(), source.end_offsets(), stop):
                data = event_data(record, kind=_EVENT, branch=_BRANCH)
                told = None if data is None or data.get("topic_id") != self._topic_id else data.get("positions")
                if _are_positions(told):
                    for number, offset, metadata in cast("list[tuple[int, int, str]]", told):
                        partition = Partition(topics.dead_letters(self._stream), number)
                        if partition in self._partitions:
                            found[partition] = parse_position(offset, metadata)
        return found

    @contextmanager
    def _group_reader(self) -> Iterator[Any]:
        consumer = kafka_connection.consumer(self._settings, group_id=self._group)
        try:
            yield consumer
        finally:
            consumer.close(autocommit=False)

    @contextmanager
    def _refusals(self, record: Record) -> Iterator[None]:
        try:
            with writing_to(record.topic):
                yield
        except REFUSED as error:
            raise UserError(
                f"the brokers refuse a record for {record.topic} ({type(error).__name__}; ce_id "
                f"{_shown_id(record)}, {record.size_bytes:,} bytes): raise max.message.bytes of the topic, or "
                "replay other reasons with --reason"
            ) from error

    def _refusal(self, error: kafka_errors.AuthorizationError) -> str:
        """Which ACL is missing, but for those of the topics that are written to."""
        if isinstance(error, kafka_errors.TransactionalIdAuthorizationFailedError):
            return refusal("transactional-id", self._group, "Write")
        if isinstance(error, kafka_errors.TopicAuthorizationFailedError):
            return refusal("topic", topics.dead_letters(self._stream), "Read")
        return refusal("group", self._group, "Read")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except TimeoutError as error:
            raise BrokerUnavailable(f"the brokers do not answer ({error}); {_AGAIN}") from error
        except kafka_errors.AuthorizationError as error:
            raise UserError(self._refusal(error)) from error
        except kafka_errors.KafkaError as error:
            # The brokers abort a transaction that was open too long, and its producer finds itself fenced as by a
            # newer one.
            if is_fenced(error) and time.monotonic() - began < 0.8 * TRANSACTION_TIMEOUT_SECONDS:
                raise ReplayFenced(f"a newer replay has taken over {self._group}; this one ends") from error
            raise BrokerUnavailable(f"the brokers did not take a transaction ({error}); {_AGAIN}") from error


def _are_positions(value: object) -> bool:
    """Whether it is [[number, offset, metadata], ...]: anybody who may write to the topic can write such an event."""
    return isinstance(value, list) and all(
        isinstance(entry, list) and [type(part) for part in entry] == [int, int, str] for entry in value
    )


def _shown_id(record: Record) -> str:
    return repr((record.header("ce_id") or b"").decode(errors="replace"))
