"""The last snapshots before new classes, which are kept for long: a consolidation loads its old teacher from one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from model_store.snapshot_store import SnapshotEntry


def class_names(entry: SnapshotEntry) -> list[str]:
    """The classes that the snapshot's network knows."""
    names = entry.facts.get("classes")
    return [str(name) for name in names] if isinstance(names, list) else []


def base_numbers(entries: Sequence[SnapshotEntry], keep: int) -> set[tuple[int, int]]:
    """(generation, sequence) of the newest `keep` snapshots after which the next one knows more classes.

    `entries`: oldest first. One that knows no class yet teaches nothing, and is none.
    """
    before = [
        older.number
        for older, newer in itertools.pairwise(entries)
        if class_names(older) and len(class_names(newer)) > len(class_names(older))
    ]
    return set(before[-keep:]) if keep else set()


def base_of(entries: Sequence[SnapshotEntry], parent: SnapshotEntry) -> SnapshotEntry | None:
    """The newest snapshot before the parent that knows fewer classes; None: there is none that knows any."""
    known = len(class_names(parent))
    older = [e for e in entries if e.number < parent.number and 0 < len(class_names(e)) < known]
    return older[-1] if older else None
