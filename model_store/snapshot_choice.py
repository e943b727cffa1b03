"""Which snapshot somebody means: SEQUENCE or GENERATION-SEQUENCE, as `palimpsest snapshots` shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.user_error import UserError

_SNAPSHOT = re.compile(r"(?:0*(\d+)-)?0*(\d+)", re.ASCII)
_SHOWN_SNAPSHOTS = 12  # where one is to be chosen


def chosen_snapshot(store: SnapshotStore, which: str, *, option: str, state_option: str) -> SnapshotEntry:
    """`option`, `state_option`: what `which` and the state were given with, for the `UserError` that none is meant."""
    entries = store.entries()
    if not entries:
        raise UserError(f"{store.folder} holds no snapshots; check {state_option}")
    match = _SNAPSHOT.fullmatch(which)
    if match is None:
        raise UserError(f"{option} {which!r} is not SEQUENCE or GENERATION-SEQUENCE; there is {listed(entries)}")
    found = [
        entry
        for entry in entries
        if entry.sequence == int(match[2]) and (match[1] is None or entry.generation == int(match[1]))
    ]
    if not found:
        raise UserError(f"{store.folder} holds no snapshot {which}; there is {listed(entries)}")
    if len(found) > 1:
        raise UserError(f"sequence {which} stands in {store.folder} more than once; choose of {listed(found)}")
    return found[0]


def listed(entries: Sequence[SnapshotEntry]) -> str:
    """The newest of them, for a message."""
    names = [f"{entry.generation}-{entry.sequence}" for entry in entries]
    older = len(names) - _SHOWN_SNAPSHOTS
    return ", ".join(names[-_SHOWN_SNAPSHOTS:]) + (f" and {older} older ones" if older > 0 else "")
