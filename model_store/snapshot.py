"""A snapshot: the whole state of a learner, and what has to be told since the one before. ARCHITECTURE.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from model_store.offsets import offsets_json
from pipeline.record import Partition
from pipeline.state import Json, StateTree, fingerprint


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """A Kafka message that the commit of this snapshot has to send: a dead letter or an event."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of key, value and headers."""
        headers = sum(len(name.encode()) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """State, the offsets it has consumed up to (the next record's), and the outbox.

    `generation` says which learner wrote it, `sequence` which commit it was. `facts` are the caller's: stream, branch,
    cluster and topic ids, checksums of last records, settings, versions, thread count, device, precision.
    """

    generation: int
    sequence: int
    state: StateTree
    offsets: Mapping[Partition, int]
    facts: Mapping[str, Json] = field(default_factory=dict)
    outbox: tuple[OutboxMessage, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 (hex) over state and offsets: the same after every replay, no wall clock, no commit numbers in it."""
        return fingerprint({"state": self.state, "offsets": offsets_json(self.offsets)})
