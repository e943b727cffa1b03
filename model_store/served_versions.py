"""The versions that predictors serve, on local disk: so that one starts, and goes on, where MLflow is away.

    <folder>/versions/7-0f3a.../   the servable of a version, for `Classifier.load`; named after its snapshot's sum too,
                                   since another MLflow may have another version 7
             champion.json         what the alias pointed to when MLflow last answered, and why nothing newer is here
             champion.good.json    the last one that was opened and answered

`version_fetcher.py` writes, predictors read; any number of them may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from model_store.durable_files import (
    TEMPORARY_PREFIX,
    make_folder,
    remove_folder,
    replace_file,
    sync,
    temporary_sibling,
)
from model_store.registry import SERVABLE_FILES, Alias, RegisteredVersion
from pipeline.user_error import UserError

# Beside those that a role names: somebody may be loading one that a role has just left.
_KEPT = 3
_SUM_CHARACTERS = 12
_SUM_FILE = "servable.sha256"
# A download that nothing was written to for so long is of a fetcher that was killed.
_ABANDONED_SECONDS = 3600.0


class ServedVersion(BaseModel):
    """A version that is here."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: int
    run_id: str | None
    name: str  # of its folder


class RoleFile(BaseModel):
    """What is known of one alias."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format_version: Literal[1] = 1
    stream: str
    served: ServedVersion | None = None  # None: there never was one
    problem: str | None = None  # why what MLflow says now is not what is here; a line for a person


class ServedVersions:
    """One folder, of one stream."""

    def __init__(self, folder: Path, stream: str) -> None:
        self.folder = folder
        self.stream = stream

    def prepare(self) -> None:
        """Make the folder. `UserError` where that cannot be, or it is another stream's."""
        try:
            make_folder(self.folder / "versions")
        except OSError as error:
            raise UserError(
                f"cannot make the folder of served versions {self.folder}: {error.strerror}; give another --models"
            ) from error
        for role in ("champion", "challenger"):
            known = _read(self.folder / f"{role}.json")
            if known is not None and known.stream != self.stream:
                raise UserError(
                    f"{self.folder} holds versions of stream {known.stream!r}, not of {self.stream!r}; "
                    "give another --models"
                )

    def role(self, role: Alias) -> RoleFile:
        """What is known of it; a file that cannot be read says nothing, and is written anew by the fetcher."""
        return _read(self.folder / f"{role}.json") or RoleFile(stream=self.stream)

    def changed(self, role: Alias) -> tuple[int, int] | None:
        """Another value each time the role's file is written; None: there is none. One system call."""
        try:
            status = (self.folder / f"{role}.json").stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def note(self, role: Alias, known: RoleFile) -> None:
        """Write it down where it is not there yet, durably: a machine that starts again without MLflow reads it."""
        if known != _read(self.folder / f"{role}.json"):
            replace_file(self.folder / f"{role}.json", known.model_dump_json(indent=1).encode())

    def good(self, role: Alias) -> ServedVersion | None:
        """The last version that was opened and answered here."""
        known = _read(self.folder / f"{role}.good.json")
        return None if known is None else known.served

    def note_good(self, role: Alias, served: ServedVersion) -> None:
        """It answers: a start goes back to it where what the alias points to then cannot be opened."""
        if served != self.good(role):
            content = RoleFile(stream=self.stream, served=served).model_dump_json(indent=1)
            replace_file(self.folder / f"{role}.good.json", content.encode())

    def path(self, served: ServedVersion) -> Path:
        return self.folder / "versions" / served.name

    def keep(self, version: RegisteredVersion, fetch: Callable[[RegisteredVersion, Path], None]) -> ServedVersion:
        """The version's servable, fetched by `fetch(version, folder)` where it is not here yet; whole, or not here.

        Raises as `fetch`, and `OSError`.
        """
        made = (version.snapshot_sha256 or "")[:_SUM_CHARACTERS] or f"at-{version.created_at_ms}"
        served = ServedVersion(version=version.version, run_id=version.run_id, name=f"{version.version}-{made}")
        target = self.path(served)
        if target.is_dir():
            return served
        temporary = temporary_sibling(target)  # another fetcher may be at the same version
        try:
            fetch(version, temporary)
            (temporary / _SUM_FILE).write_text(_sum(temporary))
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():  # else the other one was quicker
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync(target.parent)
        return served

    def is_damaged(self, served: ServedVersion) -> bool:
        """Whether its description is not what was fetched; that of the weights holds their own sum."""
        folder = self.path(served)
        try:
            return _sum(folder) != (folder / _SUM_FILE).read_text()
        except FileNotFoundError:
            return True

    def drop(self, served: ServedVersion) -> None:
        """What lies here is broken: the next `keep` fetches it anew."""
        with contextlib.suppress(FileNotFoundError):
            remove_folder(self.path(served))

    def prune(self) -> None:
        """Remove what no role names, but for the newest few, and what killed fetchers left."""
        named = {
            known.served.name
            for known in map(_read, self.folder.glob("*.json"))
            if known is not None and known.served is not None
        }
        here = list((self.folder / "versions").iterdir())
        old = sorted(
            (path for path in here if path.name not in named and not path.name.startswith(TEMPORARY_PREFIX)),
            key=_changed_at,
        )
        for path in old[: max(0, len(old) - _KEPT)]:
            with contextlib.suppress(FileNotFoundError):  # somebody else does the same
                remove_folder(path)
        for path in here:
            if path.name.startswith(TEMPORARY_PREFIX):
                with contextlib.suppress(FileNotFoundError):  # a download that ends just now
                    newest = max(map(_changed_at, (path, *path.rglob("*"))))
                    if newest < time.time() - _ABANDONED_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)

    def looked(self, role: Alias) -> Path:
        """The fetcher touches it whenever MLflow has said what the alias points to: it lives, and MLflow too."""
        return self.folder / f"{role}.looked"


def _sum(folder: Path) -> str:
    return hashlib.sha256((folder / SERVABLE_FILES[0]).read_bytes()).hexdigest()


def _changed_at(path: Path) -> float:
    """Unix time in seconds; of what somebody else has just removed, long ago."""
    try:
        return path.stat().st_ctime
    except FileNotFoundError:
        return 0.0


def _read(file: Path) -> RoleFile | None:
    try:
        return RoleFile.model_validate(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError):  # a ValidationError is a ValueError
        return None
