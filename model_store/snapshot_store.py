"""Snapshots in a folder: whole or absent, verified when loaded, the newest whole one found, old ones pruned.

<folder>/<generation>-<sequence>/state.safetensors   every tensor of the state
                                 state.json          the rest of it
                                 outbox.jsonl        what the commit has to tell, bytes as base64
                                 manifest.json       written last: numbers, offsets, facts, sizes, sums
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from model_store.durable_files import (
    TEMPORARY_PREFIX,
    file_sha256,
    new_folder,
    remove_folder,
    sync,
    write_file,
)
from model_store.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    OUTBOX_FILE,
    STATE_FILE,
    TENSORS_FILE,
    FileSum,
    Manifest,
    NotWhole,
    PartitionOffset,
    canonical_json,
    parse_manifest,
)
from model_store.outbox_file import decode_message, encode_message
from model_store.snapshot import Snapshot
from pipeline.record import Partition
from pipeline.state import Json, join, split
from pipeline.user_error import UserError

_FOLDER_NAME = re.compile(r"^(\d{6,})-(\d{10,})$", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotEntry:
    """What a snapshot's manifest says, without loading its state."""

    path: Path
    manifest: Manifest

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
    def bytes(self) -> int:
        return sum(file.bytes for file in self.manifest.files)

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
    """A folder of snapshots. Several threads may write at once; one process writes to a folder at a time."""

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, snapshots need a folder; give another --state")
        self.folder = folder
        self._writing = 0
        self._lock = threading.Lock()

    def write(self, snapshot: Snapshot) -> SnapshotEntry:
        """Make a snapshot durable, or raise `OSError`. The caller must not change its tensors until this returns.

        1. Fill a temporary sibling: tensors, the rest of the state, the outbox; sync each file.
        2. The manifest last, with size and SHA-256 of each file as it lies there.
        3. Sync, rename to its name, sync the parent: before the rename the snapshot is absent, after it whole.
        """
        path = self._path(snapshot.generation, snapshot.sequence)
        tensors, facts = split(snapshot.state)
        contents = {
            STATE_FILE: canonical_json(facts),
            OUTBOX_FILE: b"".join(encode_message(message) for message in snapshot.outbox),
        }
        with self._lock:
            self._writing += 1
        try:
            with new_folder(path) as temporary:
                # 1.
                _write_tensors(temporary / TENSORS_FILE, tensors)
                for name, content in contents.items():
                    write_file(temporary / name, content)
                # 2.
                manifest = Manifest(
                    generation=snapshot.generation,
                    sequence=snapshot.sequence,
                    offsets=[
                        PartitionOffset(topic=partition.topic, partition=partition.number, offset=offset)
                        for partition, offset in sorted(snapshot.offsets.items())
                    ],
                    # As JSON gives them back (lists for tuples): the entry returned is the one read later.
                    facts=json.loads(canonical_json(snapshot.facts)),
                    files=[_sum_of(temporary / name) for name in (TENSORS_FILE, STATE_FILE, OUTBOX_FILE)],
                    written_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                )
                write_file(temporary / MANIFEST_FILE, manifest.encode())
                # 3. is `new_folder`'s end.
        finally:
            with self._lock:
                self._writing -= 1
        return SnapshotEntry(path=path, manifest=manifest)

    def entries(self) -> list[SnapshotEntry]:
        """Every snapshot with a good manifest, oldest first. Reads manifests only; `UserError` for a newer format."""
        return self._read_manifests()[0]

    def broken(self) -> list[PassedOver]:
        """Every folder with a snapshot's name but without a good manifest, oldest first."""
        return self._read_manifests()[1]

    def load(self, entry: SnapshotEntry) -> Snapshot:
        """Read a snapshot, checking every size and sum. `NotWhole` where one is wrong."""
        contents = {name: _verified_content(entry, name) for name in (TENSORS_FILE, STATE_FILE, OUTBOX_FILE)}
        try:
            tensors = safetensors_torch.load(contents[TENSORS_FILE])
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise NotWhole(f"{TENSORS_FILE} is not a safetensors file ({error})") from None
        try:
            facts = json.loads(contents[STATE_FILE])
        except (ValueError, RecursionError) as error:
            raise NotWhole(f"{STATE_FILE} is not JSON ({error})") from None
        if not isinstance(facts, dict):
            raise NotWhole(f"{STATE_FILE} is not a JSON object")
        _check_paths([*tensors, *facts])
        return Snapshot(
            generation=entry.generation,
            sequence=entry.sequence,
            state=join(tensors, facts),
            offsets=entry.offsets,
            facts=entry.facts,
            outbox=tuple(decode_message(line) for line in contents[OUTBOX_FILE].splitlines()),
        )

    def newest_whole(self) -> Found:
        """The newest snapshot that is whole, by (generation, sequence) and never by offsets.

        An adoption moves offsets back, and a replaced learner may have been ahead of its successor: the numbers alone
        say what came last.
        """
        passed_over: list[PassedOver] = []
        for path in reversed(self._folders()):
            try:
                entry = _read_entry(path)
                return Found(snapshot=self.load(entry), entry=entry, passed_over=tuple(passed_over))
            except NotWhole as problem:
                passed_over.append(PassedOver(path, problem.why))
        return Found(snapshot=None, entry=None, passed_over=tuple(passed_over))

    def fingerprint(self, entry: SnapshotEntry) -> str:
        """SHA-256 over state and offsets, nothing of wall clock, generation or sequence in it."""
        return self.load(entry).fingerprint()

    def prune(self, keep_newest: int, pinned: Collection[tuple[int, int]] = ()) -> list[Path]:
        """Remove all but the newest and the pinned (by `SnapshotEntry.number`); returns what was removed.

        Broken folders count for nothing, and stay as evidence while they are newer than the oldest snapshot kept.
        Temporary folders that a kill left behind go too.
        """
        if keep_newest < 1:
            raise ValueError(f"at least the newest snapshot must be kept, not {keep_newest}")
        entries = self.entries()
        newest = {entry.number for entry in entries[-keep_newest:]}
        removed = [entry.path for entry in entries if entry.number not in newest and entry.number not in pinned]
        if newest:
            removed += [
                problem.path
                for problem in self.broken()
                if _number(problem.path) < min(newest) and _number(problem.path) not in pinned
            ]
        for path in removed:
            remove_folder(path)
        with self._lock:
            if self._writing == 0 and self.folder.is_dir():
                for leftover in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
                    shutil.rmtree(leftover)
        return removed

    def _path(self, generation: int, sequence: int) -> Path:
        return self.folder / f"{generation:06d}-{sequence:010d}"

    def _folders(self) -> list[Path]:
        """Everything with a snapshot's name, oldest first."""
        if not self.folder.is_dir():
            return []
        named = [path for path in self.folder.iterdir() if _FOLDER_NAME.match(path.name) and path.is_dir()]
        return sorted(named, key=_number)

    def _read_manifests(self) -> tuple[list[SnapshotEntry], list[PassedOver]]:
        entries: list[SnapshotEntry] = []
        broken: list[PassedOver] = []
        for path in self._folders():
            try:
                entries.append(_read_entry(path))
            except NotWhole as problem:
                broken.append(PassedOver(path, problem.why))
        return entries, broken


def _number(path: Path) -> tuple[int, int]:
    match = _FOLDER_NAME.match(path.name)
    assert match is not None, f"{path} has no snapshot's name"
    return int(match[1]), int(match[2])


def _read_entry(path: Path) -> SnapshotEntry:
    manifest_path = path / MANIFEST_FILE
    if not manifest_path.is_file():
        raise NotWhole(f"it has no {MANIFEST_FILE}")
    try:
        if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
            raise NotWhole(f"{MANIFEST_FILE} is larger than {MAX_MANIFEST_BYTES} bytes")
        manifest = parse_manifest(manifest_path.read_bytes())
    except OSError as error:
        raise NotWhole(f"{MANIFEST_FILE} cannot be read ({error})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if (manifest.generation, manifest.sequence) != _number(path):
        raise NotWhole(f"its manifest is that of snapshot {manifest.generation}-{manifest.sequence}")
    return SnapshotEntry(path=path, manifest=manifest)


def _sum_of(path: Path) -> FileSum:
    return FileSum.model_validate({"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)})


def _verified_content(entry: SnapshotEntry, name: str) -> bytes:
    """The bytes of a file, which are the very bytes that were summed: nothing is read a second time."""
    path, expected = entry.path / name, entry.manifest.sum_of(name)
    if not path.is_file():
        raise NotWhole(f"{name} is missing")
    try:
        size = path.stat().st_size
        if size != expected.bytes:
            raise NotWhole(f"{name} has {size} bytes instead of {expected.bytes}")
        content = path.read_bytes()
    except OSError as error:
        raise NotWhole(f"{name} cannot be read ({error})") from None
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise NotWhole(f"{name} does not match its SHA-256")
    return content


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        safetensors_torch.save_file(_savable(tensors), path)
    except SafetensorError as error:  # its name for a full disk and everything else that the system refuses
        raise OSError(errno.EIO, f"{TENSORS_FILE} cannot be written ({error})") from error
    sync(path)


def _savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU, contiguous, none sharing its memory with another: safetensors refuses the rest."""
    savable: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().to("cpu").contiguous()
        storage = own.untyped_storage().data_ptr()
        if own.numel() and storage in storages:
            own = own.clone()
        storages.add(storage)
        savable[name] = own
    return savable


def _check_paths(paths: list[str]) -> None:
    """No leaf lies under another leaf, and none stands twice: such a state cannot have come from a tree."""
    leaves = set(paths)
    if len(leaves) != len(paths):
        raise NotWhole("a name stands both among the tensors and in the rest of the state")
    for path in paths:
        parts = path.split("/")
        if any("/".join(parts[:depth]) in leaves for depth in range(1, len(parts))):
            raise NotWhole(f"the state's {path!r} lies under another leaf")
