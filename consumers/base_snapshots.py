"""The last snapshots before new classes, which are kept for long: jobs begin with one, the old teacher of some."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.backbones.sub_modules import SubModules


def class_names(entry: SnapshotEntry) -> list[str]:
    """The classes that the snapshot's network knows."""
    names = entry.facts.get("classes")
    return [str(name) for name in names] if isinstance(names, list) else []


def sub_modules_count(entry: SnapshotEntry) -> int:
    """Of the snapshot's network; 0: it has none yet."""
    architecture = cast("dict[str, Any] | None", entry.facts.get("architecture"))
    if architecture is None:
        return 0
    return len(architecture["options"]["parts"]) if architecture["backbone"] == SubModules.name else 1


def new_classes(parent: SnapshotEntry, base: SnapshotEntry) -> list[str]:
    """What the parent's network knows and the base's does not, in the parent's order."""
    known = set(class_names(base))
    return [name for name in class_names(parent) if name not in known]


def base_numbers(
    entries: Sequence[SnapshotEntry], keep: int, max_age_seconds: float | None = None
) -> set[tuple[int, int]]:
    """(generation, sequence) of the newest `keep` snapshots after which the next one knows more classes, but no older
    ones than that.

    `entries`: oldest first. One that knows no class yet teaches nothing, and is none.
    """
    before = [
        older
        for older, newer in itertools.pairwise(entries)
        if class_names(older) and len(class_names(newer)) > len(class_names(older))
    ]
    return {entry.number for entry in young_enough(before, max_age_seconds)[-keep:]} if keep else set()


def young_enough(entries: Sequence[SnapshotEntry], max_age_seconds: float | None) -> list[SnapshotEntry]:
    """Those that were written no longer ago; None: all."""
    if max_age_seconds is None:
        return list(entries)
    oldest_moment = datetime.now(UTC) - timedelta(seconds=max_age_seconds)
    return [entry for entry in entries if entry.manifest.written >= oldest_moment]


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunJob:
    """One that was interrupted, or is under way."""

    folder: Path
    parent: tuple[int, int]  # (generation, sequence)
    base: tuple[int, int]


def begun_jobs(folder: Path) -> list[BegunJob]:
    """Of the folder of jobs (`restructuring_job.py`), the newest parent last."""
    jobs = []
    for path in folder.iterdir() if folder.is_dir() else ():
        entries = SnapshotStore(path).entries() if path.is_dir() else []
        for entry in entries[-1:]:
            numbers = [tuple(cast("list[int]", entry.facts.get(name) or [])) for name in ("parent", "base")]
            if all(len(number) == 2 for number in numbers):
                parent, base = cast("list[tuple[int, int]]", numbers)
                jobs.append(BegunJob(folder=path, parent=parent, base=base))
    return sorted(jobs, key=lambda job: job.parent)


def base_of(entries: Sequence[SnapshotEntry], parent: SnapshotEntry) -> SnapshotEntry | None:
    """The newest snapshot before the parent that knows fewer classes; None: there is none that knows any."""
    known = len(class_names(parent))
    older = [e for e in entries if e.number < parent.number and 0 < len(class_names(e)) < known]
    return older[-1] if older else None
