"""The record source that reads Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient

from consumers import kafka_connection, kafka_python_mending, topics
from consumers.acls import Operation, refusal
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
# A topic that the brokers do not know is taken for deleted after this: one that has just started may not know it yet.
_MISSING_IS_DELETED_SECONDS = 10.0


class KafkaRecordSource(RecordSource):
    """All partitions of one topic, assigned by hand: no group, so no rebalance ever takes one away.

    A tail that was lost is told by leader epochs: a broker begins a new one when it comes back, and says where the one
    before ended. So each position carries the epoch that it was known to be good in.
    """

    def __init__(self, settings: KafkaSettings, partitions: Sequence[Partition], topic_id: str | None = None) -> None:
        """`partitions`, `topic_id`: from `topics.check_samples_topic`; without an id that of the first look holds.

        Raises `UserError` where no broker lets us in.
        """
        assert partitions, "a topic has at least one partition"
        self._settings = settings
        self._topic = partitions[0].topic
        self._topic_id = topic_id
        self._missing_since: float | None = None
        self._truncated: LogTruncated | None = None  # the client says so once, and then reads on; cleared by a seek
        self._admin: KafkaAdminClient | None = None  # opened by the first look at the topic
        self._ours = {TopicPartition(p.topic, p.number): p for p in sorted(partitions)}
        self._theirs = {ours: theirs for theirs, ours in self._ours.items()}
        self._good_epochs: dict[TopicPartition, int] = {}  # as of the first question about offsets
        self._consumer = kafka_connection.consumer(settings, fetch_max_wait_ms=_FETCH_WAIT_MS)
        self._gives_ours = kafka_python_mending.unpack_into_records(self._consumer)
        self._consumer.assign(list(self._ours))
        self.seek(dict.fromkeys(self.partitions, 0))

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return tuple(self._theirs)

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        self._truncated = None
        for partition, offset in offsets.items():
            if partition not in self._theirs:
                raise ValueError(f"{partition} is not a partition of this source; seek only in {list(self._theirs)}")
            theirs = self._theirs[partition]
            # The epoch at the first question, not the one now: the tail may be lost between the question and the seek.
            good = self._good_epochs.get(theirs, -1)
            epoch = max(good, kafka_python_mending.position_epoch(self._consumer, theirs))
            kafka_python_mending.seek(self._consumer, theirs, offset, epoch)

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        if self._truncated is not None:
            raise self._truncated
        try:
            with _errors(self._topic):
                polled = self._consumer.poll(timeout_ms=int(timeout_seconds * 1000), max_records=max_records)
        except LogTruncated as error:
            self._truncated = error
            raise
        except SourceUnavailable:
            time.sleep(timeout_seconds)  # the client tries again by itself; the caller need not hurry it
            return []
        except kafka_errors.CorruptRecordError as error:
            raise RecordUnreadable(
                f"{self._reading_at()} cannot be read ({error}); send the stream anew to another --stream without it, "
                "or delete the log up to it with kafka-delete-records.sh and learn the rest with another --state"
            ) from error
        if self._topic_id is not None:
            self._check_topic_id(kafka_python_mending.topic_id(self._consumer, self._topic) or self._topic_id)
        records = [record for of_partition in polled.values() for record in of_partition]
        return records if self._gives_ours else [kafka_python_mending.our_record(record) for record in records]

    def positions(self) -> dict[Partition, int]:
        return {ours: self._position(theirs) for theirs, ours in self._ours.items()}

    def _position(self, partition: TopicPartition) -> int:
        with _errors(self._topic):
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
        with _errors(self._topic):
            offsets = self._consumer.beginning_offsets(list(self._ours), timeout_ms=_OFFSETS_TIMEOUT_MS)
        self._note_epochs()
        return {ours: offsets[theirs] for theirs, ours in self._ours.items()}

    def end_offsets(self) -> dict[Partition, int]:
        with _errors(self._topic):
            offsets = self._consumer.end_offsets(list(self._ours), timeout_ms=_OFFSETS_TIMEOUT_MS)
        self._note_epochs()
        return {ours: offsets[theirs] for theirs, ours in self._ours.items()}

    def _note_epochs(self) -> None:
        """The partitions have just answered: note the epochs of those that never did before."""
        for theirs in self._ours:
            if theirs not in self._good_epochs:
                self._good_epochs[theirs] = kafka_python_mending.leader_epoch(self._consumer, theirs)

    def read_one(self, partition: Partition, offset: int) -> Record | None:
        record = self._read_at_or_after(partition, offset, offset + 1)
        return record if record is not None and record.offset == offset else None

    def read_next(self, partition: Partition, offset: int) -> Record | None:
        return self._read_at_or_after(partition, offset, None)

    def _read_at_or_after(self, partition: Partition, offset: int, until: int | None) -> Record | None:
        """The next record from `offset` on. Once the reading has come to `until` without one, none is waited for any
        more (None: to the log's end)."""
        end = self.end_offsets()[partition]
        if not self.beginning_offsets()[partition] <= offset < end:
            return None
        until = end if until is None else until
        theirs = self._theirs[partition]
        before = {
            each: (self._position(each), kafka_python_mending.position_epoch(self._consumer, each))
            for each in self._ours
        }
        deadline = time.monotonic() + _READ_ONE_TIMEOUT_SECONDS
        # The others are let go, not paused: what the client had fetched of a paused partition it may keep for itself
        # for ever, and never read on there.
        self._consumer.assign([theirs])
        self._consumer.seek(theirs, offset)
        try:
            while time.monotonic() < deadline:
                records = self.poll(1, 1.0)
                if records:
                    return records[0]
                if self._position(theirs) >= until:
                    return None
        finally:
            self._consumer.assign(list(self._ours))
            for each, (position, epoch) in before.items():
                kafka_python_mending.seek(self._consumer, each, position, epoch)
        raise SourceUnavailable(f"{partition} offset {offset} was not sent within {_READ_ONE_TIMEOUT_SECONDS:.0f} s")

    def offsets_since(self, time_seconds: float) -> dict[Partition, int]:
        ends = self.end_offsets()
        times = dict.fromkeys(self._ours, max(0, round(time_seconds * 1000)))
        with _errors(self._topic):
            found = self._consumer.offsets_for_times(times, timeout_ms=_OFFSETS_TIMEOUT_MS)
        return {
            ours: ends[ours] if found[theirs] is None else found[theirs].offset for theirs, ours in self._ours.items()
        }

    def retention_seconds(self) -> float | None:
        admin = self._open_admin()
        with _errors(self._topic, "DescribeConfigs"):
            return topics.retention_seconds(admin, self._topic)

    def refresh_partitions(self) -> tuple[Partition, ...]:
        described = self._describe_topic()
        numbers = sorted(entry["partition_index"] for entry in described["partitions"])
        new = [
            theirs for theirs in (TopicPartition(self._topic, number) for number in numbers) if theirs not in self._ours
        ]
        if not new:
            return ()
        with _errors(self._topic):
            beginnings = self._consumer.beginning_offsets(new, timeout_ms=_OFFSETS_TIMEOUT_MS)
        ours = sorted([*self._ours.values(), *(Partition(theirs.topic, theirs.partition) for theirs in new)])
        self._theirs = {partition: TopicPartition(partition.topic, partition.number) for partition in ours}
        self._ours = {theirs: partition for partition, theirs in self._theirs.items()}
        self._consumer.assign(list(self._ours))  # those that were assigned before stay where they are
        for theirs in new:
            self._consumer.seek(theirs, beginnings[theirs])
        return tuple(self._ours[theirs] for theirs in new)

    def _open_admin(self) -> KafkaAdminClient:
        if self._admin is None:
            try:
                with _errors(self._topic):
                    self._admin = kafka_connection.admin(
                        self._settings, bootstrap_timeout_ms=_OFFSETS_TIMEOUT_MS, request_timeout_ms=_OFFSETS_TIMEOUT_MS
                    )
            except UserError as error:  # brokers that let us in before: they are away
                raise SourceUnavailable(str(error)) from error
        return self._admin

    def _describe_topic(self) -> dict[str, Any]:
        """What the brokers say of the topic now, which is the one that we read.

        By a client of its own: the consumer refreshes its view in its own time, and shows neither id nor failure.
        """
        admin = self._open_admin()
        try:
            with _errors(self._topic):
                described: dict[str, Any] = admin.describe_topics([self._topic])[0]
        except UserError as error:  # brokers that let us in before: they are away
            raise SourceUnavailable(str(error)) from error
        error_type = kafka_errors.for_code(described["error_code"])
        if error_type in (kafka_errors.UnknownTopicOrPartitionError, kafka_errors.UnknownTopicIdError):
            now = time.monotonic()
            self._missing_since = self._missing_since or now
            if now - self._missing_since < _MISSING_IS_DELETED_SECONDS:
                raise SourceUnavailable(f"the brokers do not know topic {self._topic}; was it deleted?")
            raise LogTruncated(
                f"topic {self._topic} was deleted while it was read: make it again and start this learner once more, "
                "to be told what can be done"
            )
        self._missing_since = None
        with _errors(self._topic):
            if error_type is not kafka_errors.NoError and error_type is not kafka_errors.LeaderNotAvailableError:
                raise error_type()
        self._topic_id = self._topic_id or str(described["topic_id"])
        self._check_topic_id(str(described["topic_id"]))
        return described

    def _check_topic_id(self, now: str) -> None:
        if now != self._topic_id:
            raise LogTruncated(
                f"topic {self._topic} was deleted and made anew while it was read (topic id {now}, before "
                f"{self._topic_id}): what comes now is another log; start this learner once more, to be told what can "
                "be done"
            )

    def close(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        self._consumer.close(autocommit=False)


def _what(error: kafka_errors.KafkaError) -> str:
    """Which partition, where, and why, as far as the client says."""
    details: Any = error.args[0] if error.args else None
    if isinstance(error, kafka_errors.LogTruncationError):
        details = error.divergent_offsets
    if not isinstance(details, Mapping):
        return str(error)
    return ", ".join(
        f"{theirs.topic}-{theirs.partition} offset {at}: retention deleted it, or the log's tail was lost"
        if isinstance(at, int)
        else f"{theirs.topic}-{theirs.partition} lost its tail{'' if at is None else f' from offset {at.offset} on'}"
        for theirs, at in details.items()
    )


@contextmanager
def _errors(topic: str, operation: Operation = "Read") -> Iterator[None]:
    """The client's errors in the words of the contract."""
    try:
        yield
    except (
        kafka_errors.OffsetOutOfRangeError,
        kafka_errors.LogTruncationError,
        kafka_errors.NoOffsetForPartitionError,
    ) as error:
        raise LogTruncated(
            f"the log no longer holds what is to be read next ({_what(error)}); "
            "start this learner once more, to be told what can be done"
        ) from error
    except kafka_errors.UnsupportedCodecError as error:
        raise UserError(
            f"records are compressed in a way that cannot be read here ({error}); "
            "`pip install python-snappy` for snappy, or write them with lz4, zstd or gzip"
        ) from error
    except kafka_errors.AuthorizationError as error:
        raise UserError(refusal("topic", topic, operation)) from error
    except kafka_errors.RetriableError as error:
        raise SourceUnavailable(f"the brokers do not answer ({error})") from error
