"""Which version a new one goes on from, and which ones describe a line that was abandoned.

A state that takes over what was made of an earlier one of it (an adoption) goes back to that one's place of the log and
learns again from there. The versions that were made of the records in between are then of a model that nobody goes on
with: `palimpsest.superseded_by` says so. None of them is deleted, and an alias that points to one stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.record import Partition


class Described(Protocol):
    """What is asked of a registered version."""

    @property
    def version(self) -> int: ...
    @property
    def offsets(self) -> Mapping[Partition, int] | None: ...
    @property
    def records_trained(self) -> int | None: ...
    @property
    def superseded_by(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Of a version that is to be."""

    parent: int | None  # None: it is the first of its line
    abandoned: tuple[int, ...]  # newest first, those that are not known to be


def lineage(
    of_state: Iterable[Described], *, goes_back: bool, records_trained: int, offsets: Mapping[Partition, int]
) -> Lineage:
    """`of_state`: the versions of the same state that were there before it, newest first; read no farther than needed.
    `goes_back`: it is of an adopted state, which has not caught up yet and stands at these offsets."""
    abandoned: list[int] = []
    for entry in of_state:
        if entry.superseded_by is not None:
            continue
        if goes_back and _is_past(entry, records_trained, offsets):
            abandoned.append(entry.version)
            continue
        return Lineage(parent=entry.version, abandoned=tuple(abandoned))
    return Lineage(parent=None, abandoned=tuple(abandoned))


def _is_past(entry: Described, records_trained: int, offsets: Mapping[Partition, int]) -> bool:
    """Whether it has seen more of the log. Offsets alone do not tell: a topic that was made anew begins again."""
    trained = entry.records_trained
    if trained is None or trained != records_trained:
        return trained is not None and trained > records_trained
    return any(offset > offsets.get(partition, 0) for partition, offset in (entry.offsets or {}).items())
