"""The record source without Kafka: a log in memory, with what makes Kafka's logs different from lists."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from consumers.record_source import LogTruncated, RecordSource
from pipeline.record import Partition, Record


class InMemoryLog:
    """One topic. Offsets may have holes, as aborted transactions and markers leave them; the front may be cut off."""

    def __init__(self, topic: str, partitions: int = 1) -> None:
        self.topic = topic
        self.partitions = tuple(Partition(topic, number) for number in range(partitions))
        self.changed = threading.Condition()
        self._records: dict[Partition, list[Record | None]] = {partition: [] for partition in self.partitions}
        self._beginnings = dict.fromkeys(self.partitions, 0)

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
        self._positions = dict.fromkeys(log.partitions, 0)

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return self._log.partitions

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        for partition, offset in offsets.items():
            if partition not in self._positions:
                raise ValueError(f"{partition} is not a partition of topic {self._log.topic}; seek only in its own")
            self._positions[partition] = offset

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

    def close(self) -> None:
        """Nothing to let go of."""
