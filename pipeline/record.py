"""A record of the log, as bytes: what a source hands over, before anybody has looked inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One partition of one topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.number}"


@dataclass(frozen=True, slots=True)
class Record:
    """Key, value and headers exactly as they lie in the log, and where they lie.

    `headers` keep their order, may repeat a name, and a value may be null; `timestamp_ms` is the log's own (create or
    append time).
    """

    topic: str
    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = field(default_factory=tuple)
    timestamp_ms: int = 0

    @property
    def log_partition(self) -> Partition:
        return Partition(self.topic, self.partition)

    def header(self, name: str) -> bytes | None:
        """The last header of that name (the last one wins, as in Kafka's `Headers.lastHeader`), or None."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None
