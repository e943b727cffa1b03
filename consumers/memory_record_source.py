"""The record source without Kafka: a log in memory, with what makes Kafka's logs different from lists."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from consumers.record_source import LogTruncated, RecordSource
from pipeline.record import Partition, Record


class InMemoryLog:
    """One topic. Offsets may have holes, as aborted transactions and markers leave them; both ends may be cut off."""

    def __init__(self, topic: str, partitions: int = 1) -> None:
        self.topic = topic
        self.changed = threading.Condition()
        self.incarnation = 0  # stands for the topic's id
        self.retention_seconds: float | None = None  # what sources say of it; nothing is deleted by itself
        self._records: dict[Partition, list[Record | None]] = {}
        self._beginnings: dict[Partition, int] = {}
        self._losses: dict[Partition, list[int]] = {}
        self.add_partitions(partitions)

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return tuple(self._records)

    def add_partitions(self, count: int) -> None:
        """The topic grows by so many; sources see them when they look."""
        with self.changed:
            for number in range(len(self._records), len(self._records) + count):
                partition = Partition(self.topic, number)
                self._records[partition], self._beginnings[partition], self._losses[partition] = [], 0, []

    def make_anew(self) -> None:
        """The topic is deleted, and made again with as many partitions."""
        with self.changed:
            for partition in self._records:
                self._records[partition], self._beginnings[partition], self._losses[partition] = [], 0, []
            self.incarnation += 1

    def append(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        partition: int = 0,
        timestamp_ms: int = 0,
    ) -> Record:
        """Write one record; readers see it at once."""
        with self.changed:
            records = self._records[Partition(self.topic, partition)]
            record = Record(
                topic=self.topic,
                partition=partition,
                offset=len(records),
                value=value,
                key=key,
                headers=tuple(headers),
                timestamp_ms=timestamp_ms,
            )
            records.append(record)
            self.changed.notify_all()
            return record

    def append_marker(self, partition: int = 0) -> None:
        """An offset that holds no record for readers: a transaction's marker, or a record of an aborted one."""
        with self.changed:
            self._records[Partition(self.topic, partition)].append(None)
            self.changed.notify_all()

    def truncate_before(self, partition: int, offset: int) -> None:
        """Delete the records before `offset`, as retention does."""
        with self.changed:
            self._beginnings[Partition(self.topic, partition)] = offset
            self.changed.notify_all()

    def lose_tail(self, partition: int, offset: int) -> None:
        """The records from `offset` on are gone, as with a broker's page cache; the next ones take their place."""
        with self.changed:
            del self._records[Partition(self.topic, partition)][offset:]
            self._losses[Partition(self.topic, partition)].append(offset)
            self.changed.notify_all()

    def losses(self, partition: Partition) -> Sequence[int]:
        """Where each tail that was lost began, in the order of the losses."""
        return self._losses[partition]

    def beginning(self, partition: Partition) -> int:
        return self._beginnings[partition]

    def end(self, partition: Partition) -> int:
        return len(self._records[partition])

    def at(self, partition: Partition, offset: int) -> Record | None:
        """The record there; None where it is none, or was deleted."""
        return self._records[partition][offset] if self._beginnings[partition] <= offset < self.end(partition) else None


class InMemoryRecordSource(RecordSource):
    """Reads an `InMemoryLog` as a consumer reads Kafka."""

    def __init__(self, log: InMemoryLog) -> None:
        self._log = log
        self._incarnation = log.incarnation
        self._positions = dict.fromkeys(log.partitions, 0)
        self._losses_passed = {partition: len(log.losses(partition)) for partition in log.partitions}

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return tuple(self._positions)

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        for partition, offset in offsets.items():
            if partition not in self._positions:
                raise ValueError(f"{partition} is not a partition of topic {self._log.topic}; seek only in its own")
            self._positions[partition] = offset
            self._losses_passed[partition] = len(self._log.losses(partition))

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        deadline = time.monotonic() + timeout_seconds
        with self._log.changed:
            while True:
                records = self._read(max_records)
                left_seconds = deadline - time.monotonic()
                if records or left_seconds <= 0:
                    return records
                self._log.changed.wait(left_seconds)

    def _read(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        for partition, position in self._positions.items():
            beginning, end = self._log.beginning(partition), self._log.end(partition)
            if not beginning <= position <= end:
                raise LogTruncated(f"{partition} holds offsets {beginning} to {end}, but {position} is to be read next")
            if any(lost < position for lost in self._log.losses(partition)[self._losses_passed[partition] :]):
                raise LogTruncated(f"{partition} lost its tail, and {position} is to be read next")
            while position < end and len(records) < max_records:
                record = self._log.at(partition, position)
                position += 1
                if record is not None:
                    records.append(record)
            self._positions[partition] = position
        return records

    def positions(self) -> dict[Partition, int]:
        return dict(self._positions)

    def beginning_offsets(self) -> dict[Partition, int]:
        return {partition: self._log.beginning(partition) for partition in self.partitions}

    def end_offsets(self) -> dict[Partition, int]:
        return {partition: self._log.end(partition) for partition in self.partitions}

    def read_one(self, partition: Partition, offset: int) -> Record | None:
        return self._log.at(partition, offset)

    def read_next(self, partition: Partition, offset: int) -> Record | None:
        if offset < self._log.beginning(partition):
            return None
        found = (self._log.at(partition, each) for each in range(offset, self._log.end(partition)))
        return next((record for record in found if record is not None), None)

    def offsets_since(self, time_seconds: float) -> dict[Partition, int]:
        def first(partition: Partition) -> int:
            end = self._log.end(partition)
            for offset in range(self._log.beginning(partition), end):
                record = self._log.at(partition, offset)
                if record is not None and record.timestamp_ms >= round(time_seconds * 1000):
                    return offset
            return end

        return {partition: first(partition) for partition in self.partitions}

    def retention_seconds(self) -> float | None:
        return self._log.retention_seconds

    def refresh_partitions(self) -> tuple[Partition, ...]:
        if self._log.incarnation != self._incarnation:
            raise LogTruncated(f"topic {self._log.topic} was made anew while it was read")
        with self._log.changed:
            new = tuple(partition for partition in self._log.partitions if partition not in self._positions)
            for partition in new:
                self._positions[partition] = self._log.beginning(partition)
                self._losses_passed[partition] = len(self._log.losses(partition))
        return new

    def close(self) -> None:
        """Nothing to let go of."""
