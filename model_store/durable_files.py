"""Files and folders that are there whole after a power cut, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

# Folders being written or removed begin with this, so that no reader takes them for finished ones.
TEMPORARY_PREFIX = ".tmp-"


def sync(path: Path) -> None:
    """fsync a file or a folder (a folder's fsync makes the names in it durable)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write and fsync; the name is durable once its folder was synced too."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """The file has either its old content or all of the new one, whenever the machine stops."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{path.name}")
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{path.name}")
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
    """Remove a folder by renaming it first: a kill half-way leaves no half folder under its name."""
    doomed = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
