"""The record source that reads Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors

from consumers import kafka_connection
from consumers.kafka_settings import KafkaSettings
from consumers.record_source import LogTruncated, RecordSource, RecordUnreadable, SourceUnavailable
from pipeline.record import Partition, Record
from pipeline.user_error import UserError

# How long the brokers hold back an answer while there is nothing to send. A seek waits for the request before it.
_FETCH_WAIT_MS = 100
# A question about offsets; brokers that are away are asked again by the caller.
_OFFSETS_TIMEOUT_MS = 5_000
# One record, at the start: the connection stands, and the record lies there.
_READ_ONE_TIMEOUT_SECONDS = 30.0


class KafkaRecordSource(RecordSource):
    """All partitions of one topic, assigned by hand: no group, so no rebalance ever takes one away."""

    def __init__(self, settings: KafkaSettings, partitions: Sequence[Partition]) -> None:
        """`partitions`: from `topics.check_samples_topic`. Raises `UserError` where no broker lets us in."""
        assert partitions, "a topic has at least one partition"
        self._ours = {TopicPartition(p.topic, p.number): p for p in sorted(partitions)}
        self._theirs = {ours: theirs for theirs, ours in self._ours.items()}
        self._consumer = kafka_connection.consumer(settings, fetch_max_wait_ms=_FETCH_WAIT_MS)
        self._consumer.assign(list(self._ours))
        self.seek(dict.fromkeys(self.partitions, 0))

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return tuple(self._theirs)

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        for partition, offset in offsets.items():
            if partition not in self._theirs:
                raise ValueError(f"{partition} is not a partition of this source; seek only in {list(self._theirs)}")
            self._consumer.seek(self._theirs[partition], offset)

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        try:
            with _errors():
                polled = self._consumer.poll(timeout_ms=int(timeout_seconds * 1000), max_records=max_records)
        except SourceUnavailable:
            time.sleep(timeout_seconds)  # the client tries again by itself; the caller need not hurry it
            return []
        except kafka_errors.CorruptRecordError as error:
            raise RecordUnreadable(
                f"{self._reading_at()} cannot be read ({error}); send the stream anew to another --stream without it, "
                "or delete the log up to it with kafka-delete-records.sh and learn the rest with another --state"
            ) from error
        return [
            Record(
                record.topic,
                record.partition,
                record.offset,
                record.value,
                record.key,
                tuple(record.headers),
                record.timestamp,
            )
            for records in polled.values()
            for record in records
        ]

    def positions(self) -> dict[Partition, int]:
        return {ours: self._position(theirs) for theirs, ours in self._ours.items()}

    def _position(self, partition: TopicPartition) -> int:
        with _errors():
            position = self._consumer.position(partition, timeout_ms=_OFFSETS_TIMEOUT_MS)
        assert isinstance(position, int), f"{partition} was sought, so it has a position"
        return position

    def _reading_at(self) -> str:
        """Where the client's reading stands. Of several partitions only its private parts tell which one it was."""
        reading: Any = getattr(getattr(self._consumer, "_fetcher", None), "_next_partition_records", None)
        partition = self._ours.get(getattr(reading, "topic_partition", None))
        if partition is not None:
            return f"{partition} offset {reading.next_fetch_offset}"
        return "one of " + ", ".join(f"{ours} offset {offset}" for ours, offset in self.positions().items())

    def beginning_offsets(self) -> dict[Partition, int]:
        with _errors():
            offsets = self._consumer.beginning_offsets(list(self._ours), timeout_ms=_OFFSETS_TIMEOUT_MS)
        return {ours: offsets[theirs] for theirs, ours in self._ours.items()}

    def end_offsets(self) -> dict[Partition, int]:
        with _errors():
            offsets = self._consumer.end_offsets(list(self._ours), timeout_ms=_OFFSETS_TIMEOUT_MS)
        return {ours: offsets[theirs] for theirs, ours in self._ours.items()}

    def read_one(self, partition: Partition, offset: int) -> Record | None:
        if not self.beginning_offsets()[partition] <= offset < self.end_offsets()[partition]:
            return None
        theirs = self._theirs[partition]
        before = self._position(theirs)
        others = [other for other in self._ours if other != theirs]
        deadline = time.monotonic() + _READ_ONE_TIMEOUT_SECONDS
        self._consumer.pause(*others)
        self._consumer.seek(theirs, offset)
        try:
            while time.monotonic() < deadline:
                records = self.poll(1, 1.0)
                if records:
                    return records[0] if records[0].offset == offset else None
                if self._position(theirs) > offset:
                    return None
        finally:
            self._consumer.seek(theirs, before)
            self._consumer.resume(*others)
        raise SourceUnavailable(f"{partition} offset {offset} was not sent within {_READ_ONE_TIMEOUT_SECONDS:.0f} s")

    def close(self) -> None:
        self._consumer.close(autocommit=False)


@contextmanager
def _errors() -> Iterator[None]:
    """The client's errors in the words of the contract."""
    try:
        yield
    except (
        kafka_errors.OffsetOutOfRangeError,
        kafka_errors.LogTruncationError,
        kafka_errors.NoOffsetForPartitionError,
    ) as error:
        raise LogTruncated(
            f"the log no longer holds what is to be read next ({error}): retention deleted it, or its tail was lost; "
            "a longer retention.ms gives the learner more time"
        ) from error
    except kafka_errors.UnsupportedCodecError as error:
        raise UserError(
            f"records are compressed in a way that cannot be read here ({error}); "
            "`pip install python-snappy` for snappy, or write them with lz4, zstd or gzip"
        ) from error
    except kafka_errors.AuthorizationError as error:
        raise UserError(f"this user may not read the topic ({error}); ask for the ACL") from error
    except kafka_errors.RetriableError as error:
        raise SourceUnavailable(f"the brokers do not answer ({error})") from error
