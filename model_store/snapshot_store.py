"""Snapshots in a folder: whole or absent, verified when loaded, the newest whole one found, old ones pruned.

<folder>/<generation>-<sequence>/    one snapshot; `snapshot_folder` says what lies in it
         .new-<generation>-<sequence>/    what takes its place, whole (`rewrite`)
         .tmp-.../    being written or removed
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from model_store.durable_files import new_folder, remove_folder, remove_temporary, sync, temporary_sibling
from model_store.fault_points import fault_point
from model_store.manifest import Manifest, NotWhole
from model_store.snapshot import Snapshot
from model_store.snapshot_folder import Filled, LinkSource, fill, read_manifest, read_snapshot
from model_store.state_part import read_part
from pipeline.record import Partition
from pipeline.state import Json, StateTree
from pipeline.user_error import UserError

_FOLDER_NAME = re.compile(r"^(\d{6,})-(\d{10,})$", re.ASCII)
# A whole snapshot that waits to take the place of the one it is named after.
_NEW_PREFIX = ".new-"
# Age alone leaves so many: after a lull, or when the clock jumps, one decayed byte must not cost the state.
_LEFT_BY_AGE = 2
# After so many snapshots in a row, the next two are written whole: what is linked for ever would decay in all of them.
_WHOLE_EVERY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotEntry:
    """What a snapshot's manifest says, without loading its state."""

    path: Path
    manifest: Manifest
    # What writing it took; None for one that was not just written. Not part of what it is.
    written_bytes: int | None = field(default=None, compare=False)
    linked_bytes: int | None = field(default=None, compare=False)

    @property
    def generation(self) -> int:
        return self.manifest.generation

    @property
    def sequence(self) -> int:
        return self.manifest.sequence

    @property
    def number(self) -> tuple[int, int]:
        """(generation, sequence): the order of snapshots, and what `prune` pins them by."""
        return self.generation, self.sequence

    @property
    def offsets(self) -> dict[Partition, int]:
        return self.manifest.partition_offsets

    @property
    def facts(self) -> Mapping[str, Json]:
        return self.manifest.facts

    @property
    def sha256(self) -> str:
        """Names the state and its offsets (`Manifest.state_sha256`): the tag `palimpsest.snapshot_sha256`."""
        return self.manifest.state_sha256

    @property
    def names(self) -> frozenset[str]:
        """`sha256`, and what it was before each rewriting: versions that were registered then know it by that."""
        former = self.facts.get("former_sha256")
        return frozenset([self.sha256, *(map(str, former) if isinstance(former, list) else ())])

    @property
    def bytes(self) -> int:
        """Of all files that the manifest names, linked or not."""
        return sum(file.bytes for file in (*self.manifest.files, *self.manifest.blocks))

    @property
    def written_at(self) -> str:
        """UTC, ISO 8601."""
        return self.manifest.written_at


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A folder that should hold a snapshot and does not hold a whole one."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The newest whole snapshot (both None: there is none), and what newer was passed over: tell somebody."""

    snapshot: Snapshot | None
    entry: SnapshotEntry | None
    passed_over: tuple[PassedOver, ...] = ()


class SnapshotStore:
    """A folder of snapshots. Several threads may write at once; one process writes to a folder at a time.

    Blocks of rows that did not change are hard-linked from the snapshot two before, so that the newest and the second
    newest have no file in common: a byte that decays breaks at most one of them. Only what this object has written
    itself, or has just loaded, is linked: what decayed in an older process's time must not go on from snapshot to
    snapshot. The first write after a start therefore writes everything, and so do two of every 64 after it.

    Reading changes nothing in the folder, which may be another process's, or not to be written at all.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, snapshots need a folder; give another --state")
        self.folder = folder
        self._writing = 0
        self._lock = threading.Lock()
        # The newest two that this object knows to be whole, older first; the next write links from the older one.
        self._whole: tuple[SnapshotEntry, ...] = ()
        self._row = 0  # how many snapshots alternate so far, that one and the whole one before it counted
        self._last_good: tuple[int, int] | None = None  # loaded or written last: `prune` keeps it

    def write(self, snapshot: Snapshot) -> SnapshotEntry:
        """Make a snapshot durable, or raise `OSError`. The caller must not change its tensors until this returns.

        1. Fill a temporary sibling, its manifest last; sync each file.
        2. Sync, rename to its name, sync the parent: before the rename the snapshot is absent, after it whole.
        """
        path = self._path(snapshot.generation, snapshot.sequence)
        with self._at_work() as alone:
            source = self._link_source((snapshot.generation, snapshot.sequence)) if alone else None
            with new_folder(path) as temporary:
                # 1.
                filled = fill(temporary, snapshot, source)
                # 2. is `new_folder`'s end.
            fault_point("snapshot.renamed")
            entry = _entry(path, filled)
            with self._lock:
                # Only a row of ascending numbers alternates; after anything else two whole ones begin a new row.
                follows = not self._whole or entry.number > self._whole[-1].number
                self._whole = (*self._whole[-1:], entry) if follows else ()
                self._row = (self._row + 1) % _WHOLE_EVERY if follows else 0
                self._last_good = entry.number
        return entry

    def rewrite(self, entry: SnapshotEntry, snapshot: Snapshot) -> SnapshotEntry:
        """Put another content in the place of a kept snapshot, under the same numbers. Nothing is linked.

        Killed anywhere, either the old or the new one is there whole: a folder cannot replace another in one step, so
        between 2 and 3 readers take the new one for what it is to become, and whoever prunes or rewrites next does 3.

        1. Fill a temporary sibling and rename it to `.new-<name>`: whole and durable, but not yet the snapshot.
        2. Rename the old one away.
        3. Rename the new one to its name; sync.
        4. Remove the old one.
        """
        assert entry.number == (snapshot.generation, snapshot.sequence), f"{entry.path} keeps its numbers"
        path, new, old = entry.path, _new(entry.path), temporary_sibling(entry.path)
        self._finish_rewrites()
        with self._at_work():
            with self._lock:
                self._whole, self._row = (), 0  # the blocks of the old content must not come back by a link
            # 1.
            with new_folder(new) as temporary:
                filled = fill(temporary, snapshot, None)
            fault_point("rewrite.written")
            # 2.
            path.rename(old)
            fault_point("rewrite.old_away")
            # 3.
            self._finish_rewrites()
            assert path.is_dir(), f"{path} has gone: something else works on this folder"
            fault_point("rewrite.renamed")
            # 4.
            shutil.rmtree(old)
        return _entry(path, filled)

    def entries(self) -> list[SnapshotEntry]:
        """Every snapshot with a good manifest, oldest first. Reads manifests only; `UserError` for a newer format."""
        return self._read_manifests()[0]

    def broken(self) -> list[PassedOver]:
        """Every folder with a snapshot's name but without a good manifest, oldest first."""
        return self._read_manifests()[1]

    def highest_generation(self) -> int:
        """Of all snapshots, broken ones too; 0 where there is none. Reads no manifest."""
        return max((_number(path)[0] for path in self._folders()), default=0)

    def load(self, entry: SnapshotEntry) -> Snapshot:
        """Read a snapshot, checking every size and sum. `NotWhole` where one is wrong."""
        with self._lock:
            self._whole, self._row = (), 0
        snapshot = read_snapshot(_place(entry.path), entry.manifest)
        with self._lock:
            self._whole, self._row = (entry,), 1
            self._last_good = entry.number
        return snapshot

    def load_part(self, entry: SnapshotEntry, wanted: Collection[str]) -> StateTree:
        """Of a snapshot's state what lies at these paths and below them (`state_part`), verified. `NotWhole`."""
        return read_part(_place(entry.path), entry.manifest, wanted)

    def newest_whole(self, may_be: Callable[[SnapshotEntry], bool] = lambda _entry: True) -> Found:
        """The newest snapshot that is whole, by (generation, sequence) and never by offsets, among those that `may_be`.

        An adoption moves offsets back, and a replaced learner may have been ahead of its successor: the numbers alone
        say what came last.
        """
        passed_over: list[PassedOver] = []
        for path in reversed(self._folders()):
            try:
                entry = _read_entry(path)
                if not may_be(entry):
                    continue
                return Found(snapshot=self.load(entry), entry=entry, passed_over=tuple(passed_over))
            except NotWhole as problem:
                if _is_there(path):
                    passed_over.append(PassedOver(path, problem.why))
        return Found(snapshot=None, entry=None, passed_over=tuple(passed_over))

    def prune(
        self,
        keep_newest: int,
        pinned: Collection[tuple[int, int]] = (),
        max_age_seconds: float | None = None,
        *,
        pinned_sha256: Collection[str] = (),
        now: datetime | None = None,
    ) -> list[Path]:
        """Remove what is neither among the newest nor pinned, or is too old; returns what was removed.

        Pinned are snapshots by `SnapshotEntry.number` or any of their `.names`. Whatever their age, the two newest
        stay, and the one that this object loaded or wrote last: with a good manifest the newest may still be broken.
        Broken folders count for nothing, and stay as evidence while they are newer than the oldest snapshot kept.
        Temporary folders that a kill left behind go too.
        """
        if keep_newest < 1:
            raise ValueError(f"at least the newest snapshot must be kept, not {keep_newest}")
        self._finish_rewrites()
        entries, broken = self._read_manifests()
        self._remove_temporary()
        kept = entries[-keep_newest:]
        if max_age_seconds is not None:
            oldest_moment = (now or datetime.now(UTC)) - timedelta(seconds=max_age_seconds)
            young = [entry for entry in kept[:-_LEFT_BY_AGE] if entry.manifest.written >= oldest_moment]
            kept = young + kept[-_LEFT_BY_AGE:]
        newest = {entry.number for entry in kept}
        stays = {*newest, *pinned, *(entry.number for entry in entries if entry.names & set(pinned_sha256))}
        if self._last_good is not None:
            stays.add(self._last_good)
        removed = [entry.path for entry in entries if entry.number not in stays]
        if newest:
            numbers = ((_number(problem.path), problem.path) for problem in broken)
            removed += [path for number, path in numbers if number < min(newest) and number not in stays]
        for path in removed:
            self._remove(path)
        return removed

    def remove(self, path: Path) -> None:
        """Remove one snapshot, whole or not: `SnapshotEntry.path` or `PassedOver.path`."""
        assert path.parent == self.folder, f"{path} is no snapshot of {self.folder}"
        with self._lock:
            self._whole, self._row = (), 0
            if self._last_good == _number(path):
                self._last_good = None
        self._remove(path)

    def remove_leftovers(self) -> list[Path]:
        """Remove all that is no snapshot with a good manifest: broken folders, and temporary ones of killed writers.

        They may hold what has to be forgotten. Not while another thread writes.
        """
        assert self._writing == 0, "what is being written is no leftover"
        self._finish_rewrites()
        broken = [problem.path for problem in self.broken()]
        removed = self._remove_temporary()
        for path in broken:
            self._remove(path)
        return [*removed, *broken]

    # -- who writes, and from what it may link ---------------------------------------------------------------------

    @contextmanager
    def _at_work(self) -> Iterator[bool]:
        """Whether this is the only writer now; temporary folders stay as long as there is one."""
        with self._lock:
            self._writing += 1
            alone = self._writing == 1
        try:
            yield alone
        finally:
            with self._lock:
                self._writing -= 1

    def _link_source(self, number: tuple[int, int]) -> LinkSource | None:
        with self._lock:
            whole, row = self._whole, self._row
        if len(whole) < 2 or row < 2 or number <= whole[-1].number:
            return None
        alternate = whole[0]
        return LinkSource(path=alternate.path, blocks={block.name: block for block in alternate.manifest.blocks})

    # -- folders ---------------------------------------------------------------------------------------------------

    def _path(self, generation: int, sequence: int) -> Path:
        return self.folder / f"{generation:06d}-{sequence:010d}"

    def _folders(self) -> list[Path]:
        """Everything with a snapshot's name, oldest first; also the names that unfinished rewrites are to give."""
        if not self.folder.is_dir():
            return []
        named = {path for path in self.folder.iterdir() if _FOLDER_NAME.match(path.name) and path.is_dir()}
        return sorted(named | set(self._unfinished()), key=_number)

    def _unfinished(self) -> list[Path]:
        """Names of snapshots whose rewriting was killed between steps 2 and 3: the new ones are whole."""
        unfinished: list[Path] = []
        for new in self.folder.glob(f"{_NEW_PREFIX}*"):
            path = new.with_name(new.name.removeprefix(_NEW_PREFIX))
            if not _FOLDER_NAME.match(path.name) or os.path.lexists(path):  # where the old one is still there, it stays
                continue
            with suppress(NotWhole):  # a leftover
                read_manifest(new, _number(path))
                unfinished.append(path)
        return unfinished

    def _finish_rewrites(self) -> None:
        """Step 3 of `rewrite`, also where a kill came before it."""
        for path in self._unfinished():
            _new(path).rename(path)
            sync(self.folder)

    def _remove(self, path: Path) -> None:
        """What a rewriting left beside a snapshot goes first: it would take the place of what was removed."""
        if _new(path).is_dir():
            shutil.rmtree(_new(path))
        if os.path.lexists(path):
            remove_folder(path)

    def _remove_temporary(self) -> list[Path]:
        """What killed writers left: not while somebody writes."""
        with self._lock:
            if self._writing or not self.folder.is_dir():
                return []
            leftovers = remove_temporary(self.folder)
            for path in list(self.folder.glob(f"{_NEW_PREFIX}*")):
                shutil.rmtree(path)
                leftovers.append(path)
        return leftovers

    def _read_manifests(self) -> tuple[list[SnapshotEntry], list[PassedOver]]:
        entries: list[SnapshotEntry] = []
        broken: list[PassedOver] = []
        for path in self._folders():
            try:
                entries.append(_read_entry(path))
            except NotWhole as problem:
                if _is_there(path):
                    broken.append(PassedOver(path, problem.why))
        return entries, broken


def _number(path: Path) -> tuple[int, int]:
    match = _FOLDER_NAME.match(path.name)
    assert match is not None, f"{path} has no snapshot's name"
    return int(match[1]), int(match[2])


def _new(path: Path) -> Path:
    """Where `rewrite` puts what is to take the place of `path`."""
    return path.with_name(_NEW_PREFIX + path.name)


def _place(path: Path) -> Path:
    """Where the snapshot of this name lies now."""
    return path if os.path.lexists(path) or not _new(path).is_dir() else _new(path)


def _is_there(path: Path) -> bool:
    """Whether a snapshot that could not be read is there at all: its learner may have pruned it meanwhile."""
    return os.path.lexists(_place(path))


def _read_entry(path: Path) -> SnapshotEntry:
    return SnapshotEntry(path=path, manifest=read_manifest(_place(path), _number(path)))


def _entry(path: Path, filled: Filled) -> SnapshotEntry:
    return SnapshotEntry(
        path=path,
        manifest=filled.manifest,
        written_bytes=filled.written_bytes,
        linked_bytes=filled.linked_bytes,
    )
