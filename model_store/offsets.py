"""Offsets as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.record import Partition

if TYPE_CHECKING:
    from pipeline.state import Json  # takes torch with it, which the registrar's process does without


def offsets_json(offsets: Mapping[Partition, int]) -> list[Json]:
    """[{"topic", "partition", "offset"}, ...] in the order of the partitions."""
    return [
        {"topic": partition.topic, "partition": partition.number, "offset": offset}
        for partition, offset in sorted(offsets.items())
    ]
