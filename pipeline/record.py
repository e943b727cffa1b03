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

    @property
    def size_bytes(self) -> int:
        """Of key, value and headers, names too. Anybody may write headers that outweigh the rest."""
        headers = sum(len(name.encode()) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers

    def header(self, name: str) -> bytes | None:
        """The last header of that name (the last one wins, as in Kafka's `Headers.lastHeader`), or None."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None
