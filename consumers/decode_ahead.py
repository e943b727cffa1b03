"""Polls and decodes in a thread of its own, a bounded way ahead of the training thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from consumers.record_source import RecordSource, SourceUnavailable
from pipeline.record import Partition, Record
from pipeline.sample import Decoded

log = logging.getLogger(__name__)

# Handing over in chunks makes the lock's cost vanish; small ones keep the wait for the first record short.
_CHUNK_RECORDS = 64
# The brokers are asked this often where the log ends, while records come. A poll for a few records costs as much as one
# for many, so the polling waits until half of what may wait was taken; but no longer than this, for the lag's sake.
_LAG_EVERY_SECONDS = 2.0
_POLL_SECONDS = 0.25
# The topic is looked at this often: whether it has new partitions, and whether it is still the same one.
_REFRESH_SECONDS = 30.0
# A poll that does not come back within this at the end is stuck in the client, and its thread is left behind.
_JOIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Idle:
    """Everything that may be read was taken: the brokers have just said that no partition goes on."""

    positions: Mapping[Partition, int]


@dataclass(frozen=True, slots=True)
class _Chunk:
    decoded: list[Decoded]
    size_bytes: int


class DecodeAhead:
    """Records of a source, decoded, in the source's order.

        with DecodeAhead(source, decoder.decode, capacity_records=2000) as ahead:
            taken = ahead.take(0.25)

    From the first `take` or `seek` (or `with`) on, only this object's thread touches the source, since Kafka's client
    belongs to one thread. A slow taker stops the polling: at most `capacity_records` records and, but for one chunk,
    `capacity_bytes` bytes wait. Partitions that the topic gets meanwhile are read too, from their beginning. The source
    stays open at the end; whoever made it closes it.
    """

    def __init__(
        self,
        source: RecordSource,
        decode: Callable[[Record], Decoded],
        capacity_records: int,
        *,
        capacity_bytes: int = 64 * 1024 * 1024,
        poll_seconds: float = _POLL_SECONDS,
        refresh_seconds: float = _REFRESH_SECONDS,
        begins_at: Mapping[Partition, int] | None = None,
    ) -> None:
        """`begins_at`: where the source stands, where that is known; else it is asked, which brokers may have to
        answer."""
        assert capacity_records > 0, capacity_records
        self._source = source
        self._decode = decode
        self._capacity_records = capacity_records
        self._capacity_bytes = capacity_bytes
        self._poll_seconds = poll_seconds
        self._refresh_seconds = refresh_seconds
        self._chunk_records = max(1, min(_CHUNK_RECORDS, capacity_records // 4))
        self._changed = threading.Condition()  # guards all below
        self._waiting: deque[_Chunk | Idle] = deque()
        self._waiting_records = 0
        self._waiting_bytes = 0
        self._problem: BaseException | None = None
        self._closing = False
        self._seek_to: dict[Partition, int] | None = None
        self._run = 0  # counts seeks: what was polled before one is dropped
        self._ends: dict[Partition, int] = {}
        self._begins_at = begins_at
        self._taken: dict[Partition, int] = {}
        self._thread: threading.Thread | None = None
        self._unavailable_since: float | None = None

    # The taker's side

    def take(self, timeout_seconds: float) -> list[Decoded] | Idle:
        """The next records, one chunk of them; `Idle` where all was taken; [] where neither came in time.

        [] also while the brokers are away: what cannot be asked is not idle. Raises whatever the thread ran into,
        after the records before it.
        """
        self.start()
        with self._changed:
            if not self._waiting and self._problem is None:
                self._changed.wait_for(lambda: self._waiting or self._problem is not None, timeout_seconds)
            if not self._waiting:
                if self._problem is not None:
                    raise self._problem
                return []
            taken = self._waiting.popleft()
            if isinstance(taken, Idle):
                self._taken.update(taken.positions)
                return taken
            self._waiting_records -= len(taken.decoded)
            self._waiting_bytes -= taken.size_bytes
            for record in {decoded.record.partition: decoded.record for decoded in taken.decoded}.values():
                self._taken[record.log_partition] = record.offset + 1  # of each partition the last one
            self._changed.notify_all()
            return taken.decoded

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """Drop what was read ahead and read on from these offsets; what `take` gives from now on comes after them."""
        self.start()
        with self._changed:
            self._waiting.clear()
            self._waiting_records = self._waiting_bytes = 0
            self._seek_to = {**(self._seek_to or {}), **offsets}
            self._taken.update(offsets)
            self._run += 1
            self._changed.notify_all()

    @property
    def lag_records(self) -> dict[Partition, int]:
        """Offsets between what was taken and the log's end, as of the last time the brokers were asked."""
        with self._changed:
            return {partition: max(0, end - self._taken.get(partition, 0)) for partition, end in self._ends.items()}

    @property
    def away_seconds(self) -> float | None:
        """How long the brokers have not answered; None: they do. What `lag_records` says meanwhile is from before."""
        since = self._unavailable_since
        return None if since is None else time.monotonic() - since

    @property
    def is_left_behind(self) -> bool:
        """Closed, and its thread still works on the source: nobody else may."""
        return self._closing and self._thread is not None and self._thread.is_alive()

    @property
    def waiting_records(self) -> int:
        """Decoded, and not yet taken."""
        with self._changed:
            return self._waiting_records

    def start(self) -> None:
        """Start the thread, unless it runs already."""
        if self._thread is None:
            self._taken = dict(self._source.positions() if self._begins_at is None else self._begins_at)
            self._thread = threading.Thread(target=self._work, name="palimpsest-decode-ahead", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread and wait for it; the source may be used again afterwards. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)
            if self._thread.is_alive():
                log.warning("the poll did not come back within %.0f s; its thread is left behind", _JOIN_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # The thread's side

    def _work(self) -> None:
        try:
            lag_due = time.monotonic()
            refresh_due = lag_due + self._refresh_seconds
            half = (self._capacity_records + 1) // 2
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing or self._has_room(half), _LAG_EVERY_SECONDS)
                    self._changed.wait_for(lambda: self._closing or self._has_room(1))
                    if self._closing:
                        return
                    run, seek_to, self._seek_to = self._run, self._seek_to, None
                    room = self._capacity_records - self._waiting_records
                if seek_to is not None:
                    self._source.seek(seek_to)
                records = self._source.poll(room, self._poll_seconds)
                self._hand_over(records, run)
                was_away = self._unavailable_since is not None
                if not records or time.monotonic() >= lag_due:
                    self._look_at_the_ends(run, idle=not records)
                    lag_due = time.monotonic() + _LAG_EVERY_SECONDS
                # A topic that was deleted looks as if its brokers were away: only a look at it tells the difference.
                if time.monotonic() >= refresh_due or was_away:
                    self._refresh_partitions()
                    refresh_due = time.monotonic() + self._refresh_seconds
        except BaseException as problem:  # raised again in take()
            with self._changed:
                self._problem = problem
                self._changed.notify_all()

    def _has_room(self, records: int) -> bool:
        room = self._capacity_records - self._waiting_records
        return room >= records and self._waiting_bytes < self._capacity_bytes

    def _hand_over(self, records: list[Record], run: int) -> None:
        """Decode and hand over in chunks; wait wherever the bytes are too many."""
        chunk: list[Decoded] = []
        size_bytes = 0
        for position, record in enumerate(records, start=1):
            decoded = self._decode(record)
            chunk.append(decoded)
            size_bytes += _size_bytes(decoded)
            full = len(chunk) >= self._chunk_records or size_bytes >= self._capacity_bytes // 8
            if not full and position < len(records):
                continue
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or self._run != run or self._waiting_bytes < self._capacity_bytes
                )
                if self._closing or self._run != run:
                    return
                if self._waiting and isinstance(self._waiting[-1], Idle):
                    self._waiting.pop()  # no longer true, and nobody has seen it
                self._waiting.append(_Chunk(chunk, size_bytes))
                self._waiting_records += len(chunk)
                self._waiting_bytes += size_bytes
                self._changed.notify_all()
            chunk, size_bytes = [], 0

    def _refresh_partitions(self) -> None:
        try:
            new = self._source.refresh_partitions()
        except SourceUnavailable:
            return  # the look at the ends says so, or the next refresh finds them there again
        if new:
            beginnings = {
                partition: offset for partition, offset in self._source.positions().items() if partition in new
            }
            with self._changed:
                self._taken.update(beginnings)
            log.warning(
                "the topic has new partitions, which are read from their beginning: %s",
                ", ".join(f"{partition} from offset {offset}" for partition, offset in beginnings.items()),
            )

    def _look_at_the_ends(self, run: int, *, idle: bool) -> None:
        """Ask where the log ends; where all was read, say so, after all records."""
        try:
            ends = self._source.end_offsets()
            positions = self._source.positions()
        except SourceUnavailable as error:
            if self._unavailable_since is None:
                self._unavailable_since = time.monotonic()
                log.warning("the brokers are away, trying to reach them again: %s", error)
            return
        if self._unavailable_since is not None:
            away_seconds = time.monotonic() - self._unavailable_since
            log.warning("the brokers answer again, after %.0f s", away_seconds)
            self._unavailable_since = None
        with self._changed:
            self._ends = ends
            if self._run != run or self._closing:
                return
            if idle and all(positions[partition] >= end for partition, end in ends.items()):
                if self._waiting and isinstance(self._waiting[-1], Idle):
                    self._waiting.pop()
                self._waiting.append(Idle(positions))
                self._changed.notify_all()


def _size_bytes(decoded: Decoded) -> int:
    record, sample = decoded.record, decoded.sample
    return record.size_bytes if sample is None else record.size_bytes + sample.x.nbytes
