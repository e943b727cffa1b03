"""What a learner's processes did with each record, and which of it is part of the newest snapshot.

A journal is a file of JSON lines a process. What a process did counts as far as a snapshot holds it that another
process went on from, or that is the newest: the rest was lost with its process, and done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Number = tuple[int, int]  # generation and sequence of a snapshot


class JournalWriter:
    """Appends lines; each is in the file, whole, when `write` returns, also where the process is killed then."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, line: Mapping[str, Any]) -> None:
        content = json.dumps(line).encode() + b"\n"
        # A journal with a hole would find faults that are none, so a write that the disk refuses must be seen.
        if os.write(self._descriptor, content) != len(content):
            raise RuntimeError("the journal could not be written")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Its lines so far; one that a kill cut off counts for nothing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@dataclass(slots=True, kw_only=True)
class Fates:
    """What became of the records in the history of one snapshot, in the order in which it happened."""

    trained: list[str] = field(default_factory=list)  # ids
    held_out: list[str] = field(default_factory=list)  # ids
    repeats: list[tuple[int, int]] = field(default_factory=list)  # (partition, offset)
    dead: list[tuple[int, int]] = field(default_factory=list)  # (partition, offset)
    losses: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # after so many records, of each update
    events: list[str] = field(default_factory=list)  # that had to be told: "KIND/KEY"


def fates(journals: Sequence[Path], newest: Number) -> Fates:
    """Follow the history of the snapshot `newest` back to the beginning, through the processes that made it.

    1. Which process noted the snapshot, and how far it was then. A number that was noted twice was written the second
       time: the first try failed.
    2. All that this process did from where it resumed up to there.
    3. The snapshot that it resumed from, in the same way.
    """
    runs = [read_journal(path) for path in journals]
    noted: dict[Number, tuple[int, int]] = {}
    for run, lines in enumerate(runs):
        for line in lines:
            if "snapshot" in line:
                generation, sequence = line["snapshot"]
                noted[generation, sequence] = run, line["records_consumed"]
    history: list[list[dict[str, Any]]] = []
    number: Number | None = newest
    while number is not None:
        # 1.
        assert number in noted, f"nobody noted snapshot {number}"
        run, until = noted[number]
        resumed = [line for line in runs[run] if "resumed_from" in line]
        since = resumed[-1]["records_consumed"] if resumed else 0
        # 2.
        history.append([line for line in runs[run] if "trained" in line and since < line["records_consumed"] <= until])
        # 3.
        number = (resumed[-1]["resumed_from"][0], resumed[-1]["resumed_from"][1]) if resumed else None
    found = Fates()
    for line in [line for lines in reversed(history) for line in lines]:
        found.trained += line["trained"]
        found.held_out += line["held_out"]
        found.repeats.extend((partition, offset) for partition, offset in line["repeats"])
        found.dead.extend((partition, offset) for partition, offset in line["dead"])
        found.losses.append((line["records_consumed"], line["loss"]))
        found.events += line["events"]
    return found
