"""The versions that predictors serve, on local disk: so that one starts, and goes on, where MLflow is away.

    <folder>/versions/7-0f3a.../   the servable of a version, for `Classifier.load`; named after its snapshot's sum too,
                                   since another MLflow may have another version 7
             champion.json         what the alias pointed to when MLflow last answered, and why nothing newer is here

`version_fetcher.py` writes, predictors read; any number of them may share a folder.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from model_store.durable_files import TEMPORARY_PREFIX, make_folder, remove_folder, replace_file, sync
from model_store.registry import Alias, RegisteredVersion
from pipeline.user_error import UserError

# Beside those that a role names: somebody may be loading one that a role has just left.
_KEPT = 3
_SUM_CHARACTERS = 12


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

    def path(self, served: ServedVersion) -> Path:
        return self.folder / "versions" / served.name

    def keep(self, version: RegisteredVersion, fetch: Callable[[RegisteredVersion, Path], None]) -> ServedVersion:
        """The version's servable, fetched by `fetch(version, folder)` where it is not here yet; whole, or not here.

        Raises as `fetch`, and `OSError`.
        """
        made = version.snapshot_sha256 or f"at-{version.created_at_ms}"
        served = ServedVersion(
            version=version.version, run_id=version.run_id, name=f"{version.version}-{made[:_SUM_CHARACTERS]}"
        )
        target = self.path(served)
        if target.is_dir():
            return served
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{served.name}")
        shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
        try:
            fetch(version, temporary)
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
            with contextlib.suppress(FileExistsError):
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync(target.parent)
        return served

    def drop(self, served: ServedVersion) -> None:
        """What lies here is broken: the next `keep` fetches it anew."""
        with contextlib.suppress(FileNotFoundError):
            remove_folder(self.path(served))

    def prune(self) -> None:
        """Remove what no role names, but for the newest few."""
        named = {
            known.served.name
            for known in map(_read, self.folder.glob("*.json"))
            if known is not None and known.served is not None
        }
        here = [path for path in (self.folder / "versions").iterdir() if not path.name.startswith(TEMPORARY_PREFIX)]
        old = sorted((path for path in here if path.name not in named), key=lambda path: path.stat().st_mtime_ns)
        for path in old[: max(0, len(old) - _KEPT)]:
            with contextlib.suppress(FileNotFoundError):  # somebody else does the same
                remove_folder(path)


def _read(file: Path) -> RoleFile | None:
    try:
        return RoleFile.model_validate(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError):  # a ValidationError is a ValueError
        return None
