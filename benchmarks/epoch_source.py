"""A log that is read several times over, step by step: the epochs of the papers' protocols, by replaying the log.

A learner sees one long log: each step's records `epochs` times in a row, under offsets of their own. It is told of no
step and no epoch.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from consumers.record_source import RecordSource
from pipeline.record import Partition, Record


class EpochSource(RecordSource):
    """Of a topic with one partition, whose offsets have no holes. Its own offsets count what is read, not what lies."""

    def __init__(self, inner: RecordSource, step_ends: Sequence[int], epochs: int) -> None:
        """`step_ends`: the offset after each step's last record, rising. The inner source is closed with this one."""
        (self._partition,) = inner.partitions
        self._inner = inner
        self._step_ends = list(step_ends)
        self._epochs = epochs
        self._ends = [end * epochs for end in step_ends]  # of the steps, in our offsets
        self._position = 0
        self._reads_from: int | None = None  # the inner position, as far as it is known

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self._partition,)

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        self._position = offsets.get(self._partition, self._position)

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        """Never past the end of an epoch."""
        if self._position >= self._ends[-1]:
            time.sleep(timeout_seconds)  # nothing more will come
            return []
        lies_at, left = self._place(self._position)
        if self._reads_from != lies_at:
            self._inner.seek({self._partition: lies_at})
        records = self._inner.poll(min(max_records, left), timeout_seconds)[:left]
        ours = [record._replace(offset=self._position + number) for number, record in enumerate(records)]
        assert all(record.offset == lies_at + number for number, record in enumerate(records)), "a hole in the log"
        self._position += len(ours)
        self._reads_from = lies_at + len(ours)
        return ours

    def _place(self, position: int) -> tuple[int, int]:
        """Where the record of this position lies, and how many are left of its epoch, that one included."""
        step = bisect_right(self._ends, position)
        begin = self._step_ends[step - 1] if step else 0
        length = self._step_ends[step] - begin
        within = (position - begin * self._epochs) % length
        return begin + within, length - within

    def positions(self) -> dict[Partition, int]:
        return {self._partition: self._position}

    def beginning_offsets(self) -> dict[Partition, int]:
        return {self._partition: 0}

    def end_offsets(self) -> dict[Partition, int]:
        return {self._partition: self._ends[-1]}

    def read_one(self, partition: Partition, offset: int) -> Record | None:
        if not 0 <= offset < self._ends[-1]:
            return None
        record = self._inner.read_one(partition, self._place(offset)[0])
        return None if record is None else record._replace(offset=offset)

    def read_next(self, partition: Partition, offset: int) -> Record | None:
        return self.read_one(partition, offset)

    def offsets_since(self, time_seconds: float) -> dict[Partition, int]:
        """What lies there lies there since before the reading began: nothing comes any more."""
        return self.end_offsets()

    def retention_seconds(self) -> float | None:
        return self._inner.retention_seconds()

    def refresh_partitions(self) -> tuple[Partition, ...]:
        return ()

    def close(self) -> None:
        self._inner.close()
