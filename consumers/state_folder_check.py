"""An operator's look at a state folder: is it whole, whose is it, does it fit on the disk, and does the log still go on
where it ends."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from consumers.check_report import Fact, days, judged, mebibytes
from consumers.cluster_check import Log
from consumers.process_settings import SnapshotSettings
from consumers.state_checks import check_belongs
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.user_error import UserError

# A learner that is down for longer than this share of the retention loses records if it is down once more as long.
_SAFE_SHARE = 0.5
_PART = "state"


def check_state_folder(
    state: Path, *, stream: str, branch: str, snapshots: SnapshotSettings, log: Log | None
) -> list[Fact]:
    """All facts about the folder; `log` is what the brokers said of the samples, None where they said nothing.

    1. The folder: may it be written?
    2. The snapshots: is there one that is whole, and whose is it?
    3. The disk: is there room for those that are kept, and the one being written?
    4. The log: is what comes next still there, and for how long?
    """
    # 1.
    facts = [_writable(state)]
    # 2.
    store = SnapshotStore(state / "snapshots")
    try:
        entries = store.entries()
        broken = store.broken()
        found = store.newest_whole()
    except UserError as error:
        return [*facts, judged(_PART, "snapshots", "not to be read", "problem", str(error))]
    for problem in broken:
        way_out = "it is passed over, and deleted when newer ones have taken its place; look at the disk"
        facts.append(judged(_PART, problem.path.name, f"not whole: {problem.why}", "warning", way_out))
    if found.entry is None:
        if not entries and not broken:
            return [*facts, judged(_PART, "snapshots", "none yet", "ok", "")]
        way_out = "no learner can go on from here: give another --state, or put a backup of this folder in its place"
        return [*facts, judged(_PART, "snapshots", "none is whole", "problem", way_out)]
    facts += _newest(found.entry, entries, stream=stream, branch=branch, state=state)
    # 3.
    facts.append(_room(state, found.entry, snapshots.keep + snapshots.keep_bases, kept=len(entries)))
    # 4.
    if log is not None:
        facts += _against_the_log(entries, found.entry, log)
    return facts


def _writable(state: Path) -> Fact:
    there = next(folder for folder in (state, *state.absolute().parents) if folder.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    what = "writable" if writable else f"not writable by user {os.getuid()}"
    value = what if there == state else f"not there yet, {there} is {what}"
    way_out = f"give the learner's user the right to write to {there}, or give another --state"
    return judged(_PART, str(state), value, "ok" if writable else "problem", way_out)


def _newest(
    newest: SnapshotEntry, entries: list[SnapshotEntry], *, stream: str, branch: str, state: Path
) -> list[Fact]:
    value = (
        f"{newest.path.name}, {days(_age_seconds(newest))} old, {newest.facts.get('records_consumed')} records, "
        f"{mebibytes(newest.bytes)}"
    )
    is_last = newest.number == entries[-1].number
    way_out = "newer ones are not whole: a learner falls back to this one and learns again what came since"
    facts = [judged(_PART, "newest whole snapshot", value, "ok" if is_last else "warning", way_out)]
    try:
        check_belongs(newest.facts, stream=stream, branch=branch, folder=state)
    except UserError as error:
        facts.append(judged(_PART, "belongs to", "another stream or branch", "problem", str(error)))
    else:
        facts.append(judged(_PART, "belongs to", f"stream {stream}, branch {branch}", "ok", ""))
    return facts


def _room(state: Path, newest: SnapshotEntry, keep: int, *, kept: int) -> Fact:
    """Besides those that are there: the ones still to come, and the one that is written before the oldest goes."""
    free = shutil.disk_usage(state).free
    needed = newest.bytes * (max(keep - kept, 0) + 1)
    return judged(
        _PART,
        "free disk",
        f"{mebibytes(free)}; {keep} snapshots and the one being written need {mebibytes(needed)} more",
        "problem" if free < needed else "warning" if free < 2 * needed else "ok",
        "a snapshot that cannot be written stops the learner in the end: make room, or lower snapshots.keep",
    )


def _against_the_log(entries: list[SnapshotEntry], newest: SnapshotEntry, log: Log) -> list[Fact]:
    for name, ours, theirs in (
        ("cluster", newest.facts.get("cluster_id"), log.cluster_id),
        ("topic", newest.facts.get("topic_id"), log.topic_id),
    ):
        if ours not in (None, theirs):
            ways = "connect to that one, or see --accept-gap in docs/operator/recover.md"
            way_out = f"it was learnt from {name} {ours}: {ways}"
            return [judged(_PART, f"same {name}", f"no: this one is {theirs}", "problem", way_out)]
    facts = []
    for title, entry in (("newest", newest), ("oldest", entries[0])):
        gone = sorted(
            str(partition)
            for partition, offset in entry.offsets.items()
            if not log.beginnings.get(partition, 0) <= offset <= log.ends.get(partition, offset)
        )
        is_newest = entry is newest
        way_out = (
            "what comes next was deleted, or the log lost its tail: `learn --accept-gap` goes on without it"
            if is_newest
            else "a fall-back or a rewind to this one is not possible without a gap: raise retention.ms"
        )
        facts.append(
            judged(
                _PART,
                f"log after the {title} snapshot",
                "still there" if not gone else f"not there: {', '.join(gone)}",
                "ok" if not gone else "problem" if is_newest else "warning",
                way_out,
            )
        )
    if log.retention_seconds is not None:
        age = _age_seconds(newest)
        # In a lull there are no snapshots, and nothing that could be lost.
        behind = any(log.ends.get(partition, 0) > offset for partition, offset in newest.offsets.items())
        facts.append(
            judged(
                _PART,
                "retention after the newest snapshot",
                f"{days(log.retention_seconds)}, of which {days(age)} are over",
                "warning" if behind and age > _SAFE_SHARE * log.retention_seconds else "ok",
                "start the learner, or raise retention.ms: what it has not learnt will be deleted",
            )
        )
    return facts


def _age_seconds(entry: SnapshotEntry) -> float:
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(entry.written_at)).total_seconds())
