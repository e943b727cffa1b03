"""What lies in the folder of one snapshot: filled by `fill`, read by `read_manifest` and `read_snapshot`.

state.safetensors         every tensor of the state but those cut into blocks
block-*.safetensors       rows of large tensors that rarely change; some are hard links to an older snapshot's
state.json                the rest of the state
outbox.jsonl              what the commit has to tell, bytes as base64
manifest.json             written last: numbers, offsets, facts, sizes, sums
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from model_store.durable_files import sha256_of, write_file, write_pieces
from model_store.fault_points import fault_point
from model_store.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MAX_STATE_JSON_BYTES,
    OUTBOX_FILE,
    STATE_FILE,
    TENSORS_FILE,
    BlockSum,
    FileSum,
    Manifest,
    NotWhole,
    PartitionOffset,
    canonical_json,
    canonical_json_pieces,
    parse_manifest,
)
from model_store.outbox_file import decode_message, encode_message
from model_store.row_blocks import RowBlock, block_of, cut, joined
from model_store.snapshot import Snapshot
from model_store.tensor_file import tensor_file
from pipeline.state import Json, join, split
from pipeline.user_error import UserError

# Where a file cannot be linked it is written: another file system, one without links, a file with too many of them, or
# one that was pruned meanwhile.
_NO_LINK = frozenset(
    {errno.EPERM, errno.EACCES, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOENT}
)
# A tensor without elements may claim any shape, and whoever makes room for its rows would allocate it.
_MOST_ELEMENTS_CLAIMED = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A folder's manifest, and what it cost."""

    manifest: Manifest
    written_bytes: int  # of all files, the manifest's too
    linked_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSource:
    """A whole snapshot whose blocks may be linked."""

    path: Path
    blocks: Mapping[str, BlockSum]


def fill(folder: Path, snapshot: Snapshot, source: LinkSource | None) -> Filled:
    """Fill an empty folder, each file synced; its name is the caller's.

    1. The tensors: block after block linked where `source` has the same one, else written; the others in one file.
    2. The rest of the state, and the outbox.
    3. The manifest last, with size and SHA-256 of each file, summed while it was written: no file is read.
    """
    fault_point("snapshot.begun")
    # 1.
    tensors, facts = split(snapshot.state)
    together, row_blocks = cut(tensors)
    blocks: list[BlockSum] = []
    linked_bytes = 0
    for block in row_blocks:
        summed, linked = _link_or_write(folder, block, source)
        blocks.append(summed)
        linked_bytes += summed.bytes if linked else 0
    files = [_file_sum(TENSORS_FILE, write_pieces(folder / TENSORS_FILE, tensor_file(together)))]
    fault_point("snapshot.tensors_written")
    # 2.
    state_json = list(canonical_json_pieces(facts))
    if sum(map(len, state_json)) > MAX_STATE_JSON_BYTES:  # it could never be read again
        raise OSError(errno.EFBIG, f"{STATE_FILE} would be larger than {MAX_STATE_JSON_BYTES} bytes")
    files.append(_file_sum(STATE_FILE, write_pieces(folder / STATE_FILE, state_json)))
    outbox = map(encode_message, snapshot.outbox)
    files.append(_file_sum(OUTBOX_FILE, write_pieces(folder / OUTBOX_FILE, outbox)))
    fault_point("snapshot.state_written")
    # 3.
    manifest = Manifest(
        generation=snapshot.generation,
        sequence=snapshot.sequence,
        offsets=[
            PartitionOffset(topic=partition.topic, partition=partition.number, offset=offset)
            for partition, offset in sorted(snapshot.offsets.items())
        ],
        # As JSON gives them back (lists for tuples): the entry returned is the one read later.
        facts=json.loads(canonical_json(snapshot.facts)),
        files=files,
        blocks=blocks,
        written_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    content = manifest.encode()
    write_file(folder / MANIFEST_FILE, content)
    fault_point("snapshot.manifest_written")
    total = len(content) + sum(entry.bytes for entry in (*files, *blocks))
    return Filled(manifest=manifest, written_bytes=total - linked_bytes, linked_bytes=linked_bytes)


def read_manifest(folder: Path, number: tuple[int, int]) -> Manifest:
    """The manifest of the snapshot with this (generation, sequence). `NotWhole`; `UserError` for a newer format."""
    if folder.is_symlink():
        raise NotWhole("it is a link, a snapshot is a folder")
    content = _read(folder, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    try:
        manifest = parse_manifest(content)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    if (manifest.generation, manifest.sequence) != number:
        raise NotWhole(f"its manifest is that of snapshot {manifest.generation}-{manifest.sequence}")
    return manifest


def read_snapshot(folder: Path, manifest: Manifest) -> Snapshot:
    """Read the other files, checking every size and sum. `NotWhole` where one is wrong."""
    tensors = tensors_in(TENSORS_FILE, verified(folder, manifest.sum_of(TENSORS_FILE)))
    add_blocks(tensors, folder, manifest.blocks)
    facts = read_rest(folder, manifest)
    check_paths([*tensors, *facts])
    outbox = verified(folder, manifest.sum_of(OUTBOX_FILE))
    return Snapshot(
        generation=manifest.generation,
        sequence=manifest.sequence,
        state=join(tensors, facts),
        offsets=manifest.partition_offsets,
        facts=manifest.facts,
        outbox=tuple(decode_message(line) for line in outbox.splitlines()),
    )


def read_rest(folder: Path, manifest: Manifest) -> dict[str, Json]:
    """{path: value} of what no tensor holds."""
    expected = manifest.sum_of(STATE_FILE)
    if expected.bytes > MAX_STATE_JSON_BYTES:
        raise NotWhole(f"{STATE_FILE} is larger than {MAX_STATE_JSON_BYTES} bytes")
    try:
        facts = json.loads(verified(folder, expected))
    except (ValueError, RecursionError) as error:
        raise NotWhole(f"{STATE_FILE} is not JSON ({error})") from None
    if not isinstance(facts, dict):
        raise NotWhole(f"{STATE_FILE} is not a JSON object")
    return facts


# -- writing -----------------------------------------------------------------------------------------------------------


def _link_or_write(folder: Path, block: RowBlock, source: LinkSource | None) -> tuple[BlockSum, bool]:
    """(its sum, whether it was linked). What is linked is compared by its sum and its size, not read."""
    path = folder / block.file_name
    pieces = tensor_file({block.tensor: block.rows})
    known = None if source is None else source.blocks.get(block.file_name)
    if source is not None and known is not None:
        size, sha256 = sha256_of(pieces)
        if (size, sha256) == (known.bytes, known.sha256) and _link(source.path / block.file_name, path, size):
            return known, True
    size, sha256 = write_pieces(path, pieces)
    return BlockSum(name=block.file_name, bytes=size, sha256=sha256), False


def _link(existing: Path, path: Path, size: int) -> bool:
    try:
        status = existing.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return False
        os.link(existing, path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def _file_sum(name: str, size_and_sum: tuple[int, str]) -> FileSum:
    size, sha256 = size_and_sum
    return FileSum.model_validate({"name": name, "bytes": size, "sha256": sha256})


# -- reading -----------------------------------------------------------------------------------------------------------


def verified(folder: Path, expected: FileSum | BlockSum) -> bytes:
    """The bytes of a file, which are the very bytes that were summed: nothing is read a second time."""
    content = _read(folder, expected.name, expected.bytes, exactly=True)
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise NotWhole(f"{expected.name} does not match its SHA-256")
    return content


def _read(folder: Path, name: str, limit: int, *, exactly: bool = False) -> bytes:
    """A file of at most (or exactly) so many bytes."""
    with opened(folder, name, limit, exactly=exactly) as file:
        return file.readall()


@contextmanager
def opened(folder: Path, name: str, limit: int, *, exactly: bool = False) -> Iterator[FileIO]:
    """Such a file, to be read; its size is looked at first. Links are not followed."""
    try:
        # without O_NONBLOCK, opening a pipe would wait for its writer
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with FileIO(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NotWhole(f"{name} is not a file")
            if exactly and status.st_size != limit:
                raise NotWhole(f"{name} has {status.st_size} bytes instead of {limit}")
            if status.st_size > limit:
                raise NotWhole(f"{name} is larger than {limit} bytes")
            yield file
    except FileNotFoundError:
        raise NotWhole(f"{name} is missing") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotWhole(f"{name} is a link, which may lead anywhere") from None
        raise NotWhole(f"{name} cannot be read ({error})") from None


def tensors_in(name: str, content: bytes) -> dict[str, Tensor]:
    """Of a safetensors file; `NotWhole` where it is none."""
    try:
        tensors = safetensors_torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise NotWhole(f"{name} is not a safetensors file ({_line(error)})") from None
    for path, tensor in tensors.items():
        if math.prod(size for size in tensor.shape if size) > max(tensor.numel(), _MOST_ELEMENTS_CLAIMED):
            raise NotWhole(f"{name} holds {path!r} of the absurd shape {tuple(tensor.shape)}")
    return tensors


def add_blocks(tensors: dict[str, Tensor], folder: Path, blocks: Sequence[BlockSum]) -> None:
    """Put them together, each verified, and beside the other tensors. `NotWhole`."""
    rows: dict[str, list[Tensor]] = {}
    for block in blocks:
        tensor, _ = block_of(block.name)
        held = tensors_in(block.name, verified(folder, block))
        if list(held) != [tensor]:
            raise NotWhole(f"{block.name} holds {sorted(held)[:3]} instead of rows of {tensor!r}")
        rows.setdefault(tensor, []).append(held[tensor])
    for tensor, parts in rows.items():
        if tensor in tensors:
            raise NotWhole(f"{tensor!r} stands both in {TENSORS_FILE} and in blocks")
        try:
            tensors[tensor] = joined(parts)
        except ValueError as error:
            raise NotWhole(f"{tensor!r}: {error}") from None


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def check_paths(paths: list[str]) -> None:
    """No leaf lies under another leaf, and none stands twice: such a state cannot have come from a tree."""
    leaves = set(paths)
    if len(leaves) != len(paths):
        raise NotWhole("a name stands both among the tensors and in the rest of the state")
    for path in paths:
        parts = path.split("/")
        if any("/".join(parts[:depth]) in leaves for depth in range(1, len(parts))):
            raise NotWhole(f"the state's {path!r} lies under another leaf")
