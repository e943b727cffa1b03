"""What restructurings have for a learner: whole snapshots at their parents' offsets, a folder for each job.

<folder>/<job>/<generation>-<sequence>/    the offer, under its parent's numbers, whole or absent like any snapshot
              /refusal.json                why there is none, where the learner asked for one

Whoever did the job puts it here, the learner adopts or refuses it, and removes it when that is durable twice: a learner
that falls back to the snapshot before finds it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from model_store.durable_files import make_folder, remove_folder, remove_temporary, replace_file
from model_store.fault_points import fault_point
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.state import Json
from pipeline.user_error import UserError

_REFUSAL = "refusal.json"
_JOB = re.compile(r"[a-z][a-z_]{0,31}-[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One that is whole as far as its manifest says."""

    job: str
    entry: SnapshotEntry

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the job says of it: `kind`, and what it measured."""
        offer = self.entry.facts.get("offer")
        return cast("Mapping[str, Any]", offer) if isinstance(offer, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a job that was asked for says instead of an offer."""

    job: str
    facts: Mapping[str, Any]  # `kind`, `why`, and what was measured


class OfferStore:
    """A folder of offers and refusals. One process puts a job's, one learner takes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, job: str, kind: str, parent: Snapshot, result: Snapshot, said: Mapping[str, Json]) -> Offer:
        """Offer a snapshot in its parent's place. A job that is done twice offers once: what lies there stays.

        `job`: KIND-NUMBER in lower case. `said`: for events and metrics. Raises `OSError`.
        """
        assert _JOB.fullmatch(job), f"{job!r} is no name of a job"
        waiting = {offer.job: offer for offer in self.waiting()}
        if job in waiting:
            return waiting[job]
        offered = Snapshot(
            generation=parent.generation,
            sequence=parent.sequence,
            state=result.state,
            offsets=parent.offsets,
            facts={**result.facts, "offer": {**said, "kind": kind, "job": job}},
        )
        entry = SnapshotStore(self.folder / job).write(offered)
        fault_point("offer.put")
        return Offer(job=job, entry=entry)

    def refuse(self, job: str, kind: str, why: str, said: Mapping[str, Json]) -> None:
        """Nothing comes of a job that the learner waits for; `why`: one line. Raises `OSError`."""
        assert _JOB.fullmatch(job), f"{job!r} is no name of a job"
        make_folder(self.folder / job)
        facts = {**said, "kind": kind, "job": job, "why": why}
        replace_file(self.folder / job / _REFUSAL, json.dumps(facts, ensure_ascii=False).encode())
        fault_point("offer.refused")

    def waiting(self) -> list[Offer]:
        """In the order of their numbers. A folder without a good manifest is none; nor is one that cannot be read, such
        as another release's: a learner must not die of it."""
        offers = []
        with suppress(OSError):
            for path in self.folder.iterdir() if self.folder.is_dir() else ():
                if _JOB.fullmatch(path.name) and path.is_dir():
                    with suppress(UserError):
                        entries = SnapshotStore(path).entries()
                        offers += [Offer(job=path.name, entry=entry) for entry in entries[-1:]]
        return sorted(offers, key=lambda offer: (_number(offer.job), offer.job))

    def answers(self) -> list[Offer | Refusal]:
        """Of each job that was answered: what it offers, else why it offers nothing. What cannot be read is none."""
        offers = self.waiting()
        return [*offers, *self._refusals({offer.job for offer in offers})]

    def _refusals(self, offered: Collection[str]) -> list[Refusal]:
        refusals = []
        with suppress(OSError):
            for path in self.folder.iterdir() if self.folder.is_dir() else ():
                if _JOB.fullmatch(path.name) and path.name not in offered:
                    with suppress(OSError, ValueError, RecursionError):
                        facts = json.loads((path / _REFUSAL).read_bytes())
                        if isinstance(facts, dict):
                            refusals.append(Refusal(job=path.name, facts=facts))
        return sorted(refusals, key=lambda refusal: (_number(refusal.job), refusal.job))

    def load(self, offer: Offer) -> Snapshot:
        """Every sum is checked: `NotWhole` where one is wrong."""
        return SnapshotStore(self.folder / offer.job).load(offer.entry)

    def clear(self) -> int:
        """Remove all, whole or not: they hold raw samples. How many folders there were. Raises `OSError`."""
        folders = [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
        for path in folders:
            remove_folder(path)
        if self.folder.is_dir():
            remove_temporary(self.folder)
        return len(folders)

    def remove(self, job: str) -> None:
        """Raises `OSError`."""
        assert _JOB.fullmatch(job), f"{job!r} is no name of a job"
        remove_folder(self.folder / job)


def _number(job: str) -> int:
    return int(job.rpartition("-")[2])
