"""Files and folders that are there whole after a power cut, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

# Folders being written or removed begin with this, so that no reader takes them for finished ones.
TEMPORARY_PREFIX = ".tmp-"
# Smaller pieces are gathered up to this before they are written: each write and each sum lets other threads run, and
# may wait for them up to 5 ms before it goes on.
_GATHERED_BYTES = 1024 * 1024
# Larger pieces are written and summed in parts that a processor's cache may still hold the second time.
_PART_BYTES = 8 * 1024 * 1024


def sync(path: Path) -> None:
    """fsync a file or a folder (a folder's fsync makes the names in it durable)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_sibling(path: Path) -> Path:
    """A name that nobody has, in the same folder: for what is to become `path`, or was it."""
    return path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{path.name}")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where they are missing. Their names are durable when this returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write and fsync; the name is durable once its folder was synced too."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write and fsync a new file, summing on the way; (bytes, SHA-256 in hex). The file is not read again.

    Writing and summing let other threads of the interpreter run.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("xb", buffering=0) as file:
        for part in _parts(pieces):
            digest.update(part)
            done = 0
            while done < len(part):  # one call may write less than it was given
                done += file.write(part[done:])
            size += len(part)
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def sha256_of(pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """What `write_pieces` would return, without writing."""
    digest = hashlib.sha256()
    size = 0
    for part in _parts(pieces):
        digest.update(part)
        size += len(part)
    return size, digest.hexdigest()


def _parts(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    gathered: list[bytes | memoryview] = []
    waiting = 0
    for piece in pieces:
        if len(piece) < _GATHERED_BYTES:
            gathered.append(piece)
            waiting += len(piece)
            if waiting < _GATHERED_BYTES:
                continue
        if gathered:
            yield memoryview(b"".join(gathered))
            gathered, waiting = [], 0
        if len(piece) >= _GATHERED_BYTES:
            whole = memoryview(piece)
            for start in range(0, len(whole), _PART_BYTES):
                yield whole[start : start + _PART_BYTES]
    if gathered:
        yield memoryview(b"".join(gathered))


def replace_file(path: Path, content: bytes) -> None:
    """The file has either its old content or all of the new one, whenever the machine stops."""
    temporary = temporary_sibling(path)
    try:
        write_file(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling to fill; it becomes `path` when the block ends, and vanishes when the block raises.

    1. The block fills the sibling and syncs its files.
    2. Sync the sibling, rename it, sync the parent: a kill before the rename leaves nothing under `path`.
    A folder already under that name was never announced (its write failed after the rename) and is replaced.
    """
    make_folder(path.parent)
    temporary = temporary_sibling(path)
    temporary.mkdir()
    try:
        # 1.
        yield temporary
        # 2.
        for folder in (temporary, *(entry for entry in temporary.rglob("*") if entry.is_dir())):
            sync(folder)
        if path.exists():
            remove_folder(path)
        temporary.rename(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder by renaming it first: a kill half-way leaves no half folder under its name.

    Of a link to a folder the link alone is removed.
    """
    if path.is_symlink():
        path.unlink()
        return
    doomed = temporary_sibling(path)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_temporary(folder: Path, name: str = "") -> list[Path]:
    """Remove what killed writers and removers left of the file or folder `name`, or of any; returns what was removed.

    Only where nobody writes such a one now: what is being written goes too.
    """
    leftovers = sorted(folder.glob(f"{TEMPORARY_PREFIX}*{name}"))
    for path in leftovers:
        with contextlib.suppress(FileNotFoundError):  # its remover is at work just now
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return leftovers
