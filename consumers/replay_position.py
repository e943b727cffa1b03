"""How far dead letters were replayed: one offset, and for the reasons that were replayed alone offsets ahead of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.sample import DeadLetterReason

# The brokers' offset.metadata.max.bytes by default.
_MAX_METADATA_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ReplayPosition:
    """Of one partition. `offset` is the smallest of all: every reason that is not in `ahead` stands there."""

    offset: int
    ahead: Mapping[DeadLetterReason, int] = field(default_factory=dict)

    def of(self, reason: str) -> int:
        """The first offset that was not yet replayed under this reason."""
        return next((offset for ahead, offset in self.ahead.items() if ahead == reason), self.offset)

    def begin(self, reasons: Collection[DeadLetterReason]) -> int:
        """Where reading begins for these reasons; none: for all."""
        return min((self.of(reason) for reason in reasons), default=self.offset)

    def advanced(self, reasons: Collection[DeadLetterReason], offset: int) -> ReplayPosition:
        """All before `offset` was replayed that has one of these reasons; none: everything."""
        if not reasons:
            return _smallest(max(offset, self.offset), self.ahead)
        return _smallest(self.offset, {**self.ahead, **{reason: max(offset, self.of(reason)) for reason in reasons}})

    @property
    def metadata(self) -> str:
        """JSON {reason: offset} of `ahead`: it stands beside the group's offset, for us and for Kafka's own tools."""
        text = json.dumps({str(reason): offset for reason, offset in sorted(self.ahead.items())}, separators=(",", ":"))
        assert len(text) < _MAX_METADATA_BYTES, "there are only so many reasons"
        return text


def parse_position(offset: int, metadata: str | None) -> ReplayPosition:
    """What `metadata` says, as far as it is ours: whoever sets the group's offset by hand sets it for all reasons."""
    try:
        found: Any = json.loads(metadata or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        found = {}
    return _smallest(
        offset,
        {reason: found[reason] for reason in DeadLetterReason if type(found.get(str(reason))) is int},
    )


def _smallest(offset: int, ahead: Mapping[DeadLetterReason, int]) -> ReplayPosition:
    return ReplayPosition(offset, {reason: there for reason, there in ahead.items() if there > offset})
