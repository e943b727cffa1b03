"""The contract of what records are polled from: all partitions of one topic, committed records only."""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from pipeline.record import Partition, Record

_POLL_RECORDS = 500
_POLL_SECONDS = 0.25


class LogTruncated(RuntimeError):
    """The log no longer holds what is to be read next: retention deleted it, its tail was lost, the topic is another.

    Going on elsewhere would leave a gap in what was learnt without anybody knowing.
    """


class RecordUnreadable(LogTruncated):
    """What is to be read next lies there, but not as a record: its batch is broken. Skipping it would leave a gap too.

    To whoever waits for records it is the same as if the log no longer held it: a person must decide.
    """


class SourceUnavailable(RuntimeError):
    """The brokers do not answer. Nothing is lost; the same call may be made again."""


class ReadingStopped(SourceUnavailable):
    """A stop was asked for before the end was read."""


class RecordSource(ABC):
    """All partitions of one topic, assigned to this source alone; it belongs to no consumer group.

    Not thread-safe: one thread at a time.
    """

    @property
    @abstractmethod
    def partitions(self) -> tuple[Partition, ...]:
        """In the order of their numbers."""

    @abstractmethod
    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """Read on from these offsets; partitions that are not named stay where they are. At first all stand at 0."""

    @abstractmethod
    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        """Up to `max_records`, in the log's order within each partition; empty where none came in time.

        A tail that was lost is noticed also where the log has grown past the position again since.
        Raises `LogTruncated` and `RecordUnreadable`. Brokers that are away are no error: nothing comes until they are
        back.
        """

    @abstractmethod
    def positions(self) -> dict[Partition, int]:
        """Where each partition is read on from: past control records, once a poll came back empty."""

    @abstractmethod
    def beginning_offsets(self) -> dict[Partition, int]:
        """The first offset that retention has left in each partition. Raises `SourceUnavailable`."""

    @abstractmethod
    def end_offsets(self) -> dict[Partition, int]:
        """Past the last record that may be read now: an open transaction holds it back. Raises `SourceUnavailable`."""

    @abstractmethod
    def read_one(self, partition: Partition, offset: int) -> Record | None:
        """The record at this very offset; None where none lies there (deleted, aborted, a marker, not yet written).

        Positions are as before. Raises `SourceUnavailable`.
        """

    @abstractmethod
    def read_next(self, partition: Partition, offset: int) -> Record | None:
        """The first record at this offset or after it; None where the log ends before one comes, or begins later.

        Positions are as before. Raises `SourceUnavailable`, and as `poll` does.
        """

    @abstractmethod
    def offsets_since(self, time_seconds: float) -> dict[Partition, int]:
        """The first offset in each partition whose record's own time is this (since 1970) or later; its end where none
        is. Raises `SourceUnavailable`."""

    @abstractmethod
    def retention_seconds(self) -> float | None:
        """How old records become before the log may delete them; None: as old as you like (it may delete by size).

        Ages go by the records' own times (`Record.timestamp_ms`), and the log deletes whole segments, by the newest
        record in each: it is never earlier than this, and may be much later. Asked of the brokers each time. Raises
        `SourceUnavailable`, and `UserError` where they do not tell this user.
        """

    @abstractmethod
    def refresh_partitions(self) -> tuple[Partition, ...]:
        """Look at the topic: partitions that came since the last look; they are assigned, and stand at their beginning.

        Raises `LogTruncated` where the topic was deleted, or made anew, and `SourceUnavailable`.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the brokers; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_records(
    source: RecordSource,
    begin: Mapping[Partition, int],
    end: Mapping[Partition, int],
    stop: threading.Event | None = None,
) -> Iterator[Record]:
    """Every record from `begin` to `end` (exclusive), in the log's order within each partition.

    Raises `ReadingStopped` once `stop` is set, `SourceUnavailable` and `LogTruncated`.
    """
    source.seek(begin)
    while any(position < end[partition] for partition, position in source.positions().items()):
        if stop is not None and stop.is_set():
            raise ReadingStopped("stopped while reading back what lies there; the next start does it again")
        records = source.poll(_POLL_RECORDS, _POLL_SECONDS)
        for record in records:
            if record.offset < end[record.log_partition]:
                yield record
        if not records:
            source.end_offsets()  # brokers that are away poll as an empty log does; this raises where they are


def record_checksum(record: Record) -> str:
    """SHA-256 (hex) over key, value and headers: what a producer wrote, and nothing that the log adds."""
    digest = hashlib.sha256()

    def add(part: bytes | None) -> None:
        # The length before each part, and -1 for null: no two different records give the same bytes.
        digest.update((-1 if part is None else len(part)).to_bytes(8, "big", signed=True))
        digest.update(part or b"")

    add(record.key)
    add(record.value)
    for name, value in record.headers:
        add(name.encode())
        add(value)
    return digest.hexdigest()
