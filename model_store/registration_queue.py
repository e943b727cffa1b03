"""Registrations that wait on disk: they survive kills, and a registry that is away.

    <folder>/pending/<number>/request.json   oldest number first; the folder appears whole or not at all
                              servable/...
             done/<number>.json              receipts: what became of a request, until somebody has taken note
             broken/<number>/                requests that no retry can help, kept for a person to look at
             aliases.json                    the snapshots that the registry's aliases point to
             lock                            held by the one registrar that works on the queue

The learner submits and reads receipts; the registrar's process takes and finishes. Both may be killed at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_store.alias_file import read_aliases, write_aliases
from model_store.durable_files import new_folder, remove_folder, replace_file, write_file
from model_store.offsets import offsets_json
from model_store.registry import MetricPoint, RegisteredVersion, RegistrationRequest, ServableBroken
from pipeline.record import Partition

REQUEST_FILE = "request.json"
SERVABLE_FOLDER = "servable"
ALIASES_FILE = "aliases.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of a request. `version` is None where it could not be registered, ever; `problem` says why."""

    number: int
    snapshot_sha256: str
    version: int | None
    tags: dict[str, str]
    run_id: str | None = None  # of MLflow, where the state's metrics are
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A request that is durable. `dropped` is an older one that made room for it: tell somebody."""

    number: int
    dropped: int | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """The oldest request that waits."""

    number: int
    request: RegistrationRequest


class RegistrationQueue:
    """A folder of requests. One process submits, one (that holds `lock`) takes."""

    def __init__(self, folder: Path, *, max_pending: int = 200) -> None:
        """`max_pending`: past it the second oldest request makes room, so that a registry that is away for weeks does
        not fill the disk (the oldest may be the one being registered)."""
        assert max_pending >= 2, "the oldest may be in work, so that only the second oldest can make room"
        self.folder = folder
        self.max_pending = max_pending
        self._told: set[int] = set()  # receipts handed out by this object
        self._sums: dict[tuple[Path, int], str | None] = {}  # (file, when it was written) -> its snapshot's SHA-256

    # -- the learner's side ----------------------------------------------------------------------------------------

    def submit(self, request: RegistrationRequest, save_servable: Callable[[Path], object]) -> Submitted:
        """Make a request durable; `OSError` where that fails, and then nothing of it is left.

        1. A temporary sibling: the servable (`save_servable` is `Classifier.save`), then the request.
        2. Rename: before it there is no request, after it a whole one.
        3. Where too many wait, the second oldest goes.
        """
        number = self._next_number()
        with new_folder(self._pending / _name(number)) as temporary:
            # 1.
            save_servable(temporary / SERVABLE_FOLDER)
            write_file(temporary / REQUEST_FILE, _encode(request))
            # 2. is `new_folder`'s end.
        # 3.
        waiting = self.pending_numbers()
        if len(waiting) <= self.max_pending:
            return Submitted(number=number)
        remove_folder(self._pending / _name(waiting[1]))
        return Submitted(number=number, dropped=waiting[1])

    def poll_receipts(self) -> list[Receipt]:
        """Receipts that this object has not handed out yet, oldest first. They stay until they are acknowledged."""
        receipts: list[Receipt] = []
        for number in _numbers(self._done, ".json"):
            if number not in self._told:
                receipts.append(Receipt(**json.loads((self._done / f"{_name(number)}.json").read_bytes())))
                self._told.add(number)
        return receipts

    def acknowledge(self, receipts: Collection[Receipt]) -> None:
        """What they say is durable elsewhere (in a committed snapshot's outbox): forget them."""
        for receipt in receipts:
            (self._done / f"{_name(receipt.number)}.json").unlink(missing_ok=True)

    def pending_numbers(self) -> list[int]:
        return _numbers(self._pending, "")

    def pinned_sha256(self) -> frozenset[str]:
        """Snapshots that must stay: of the versions that have an alias, of what waits, and of unread receipts.

        Each file is read once; after that a call costs two listings. What cannot be read pins nothing.

        1. Requests. 2. Receipts: a request that has gone since 1 has left its receipt before. 3. Aliases: they are
        written before the receipt is.
        """
        requests = [self._pending / _name(number) / REQUEST_FILE for number in self.pending_numbers()]  # 1.
        receipts = [self._done / f"{_name(number)}.json" for number in _numbers(self._done, ".json")]  # 2.
        known: dict[tuple[Path, int], str | None] = {}
        for file in (*requests, *receipts):
            try:
                key = (file, file.stat().st_mtime_ns)
            except OSError:  # finished or acknowledged meanwhile
                continue
            known[key] = self._sums[key] if key in self._sums else _snapshot_sha256(file)
        self._sums = known
        aliases = self.aliases().values()  # 3.
        return frozenset(
            [sha256 for sha256 in known.values() if sha256]
            + [sha256 for snapshots in aliases for sha256 in snapshots.values()]
        )

    def aliases(self) -> dict[str, dict[str, str]]:
        """{stream: {alias: SHA-256 of its version's snapshot}}, as the registrar last saw them."""
        return read_aliases(self.folder / ALIASES_FILE)

    # -- the registrar's side --------------------------------------------------------------------------------------

    def note_aliases(self, streams: Mapping[str, Mapping[str, str]]) -> None:
        """Make them known to the learner, durably."""
        if streams != self.aliases():
            write_aliases(self.folder / ALIASES_FILE, streams)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Whether this process is now the one that takes. The kernel lets go of it when the process dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def oldest(self) -> Pending | None:
        """The next request. One that cannot be read is set aside, with a receipt that says why."""
        for number in self.pending_numbers():
            folder = self._pending / _name(number)
            try:
                return Pending(number, _decode(folder))
            except FileNotFoundError:
                if folder.exists():
                    self.set_aside(number, "", f"{folder} has no {REQUEST_FILE}")
                continue  # else it made room for a newer one
            except (ValueError, ServableBroken) as error:
                self.set_aside(number, "", str(error))
        return None

    def finish(self, pending: Pending, version: RegisteredVersion) -> None:
        """1. The receipt. 2. The request goes. A kill between: it is registered again, which finds the same version."""
        self._write_receipt(
            Receipt(
                number=pending.number,
                snapshot_sha256=pending.request.snapshot_sha256,
                version=version.version,
                tags=dict(version.tags),
                run_id=version.run_id,
            )
        )
        with contextlib.suppress(FileNotFoundError):  # it made room for a newer one meanwhile
            remove_folder(self._pending / _name(pending.number))

    def set_aside(self, number: int, snapshot_sha256: str, problem: str) -> None:
        """No retry can help this request: keep it for a person, let the next one come, and leave a receipt."""
        broken = self.folder / "broken"
        broken.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self._pending / _name(number)).rename(broken / f"{_name(number)}-{os.getpid()}")
        self._write_receipt(
            Receipt(number=number, snapshot_sha256=snapshot_sha256, version=None, tags={}, problem=problem)
        )

    # -- files -----------------------------------------------------------------------------------------------------

    @property
    def _pending(self) -> Path:
        return self.folder / "pending"

    @property
    def _done(self) -> Path:
        return self.folder / "done"

    def _next_number(self) -> int:
        """Above every number in use, so that a receipt is never another request's."""
        used = [*self.pending_numbers(), *_numbers(self._done, ".json"), *self._told]
        return max(used, default=0) + 1

    def _write_receipt(self, receipt: Receipt) -> None:
        self._done.mkdir(parents=True, exist_ok=True)
        fields = {name: getattr(receipt, name) for name in Receipt.__slots__}
        replace_file(self._done / f"{_name(receipt.number)}.json", json.dumps(fields).encode())


class _Point(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    value: float
    step: int
    timestamp_ms: int


class _Offset(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    topic: str
    partition: int
    offset: int


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: Literal[1]
    stream: str
    state_id: str
    snapshot_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    offsets: list[_Offset]
    classes: list[str]
    trigger: str = Field(min_length=1)
    records_trained: int
    average_forgetting: float | None
    worst_class: str | None
    parent_version: int | None
    metrics: list[_Point]
    tags: dict[str, str]


def _encode(request: RegistrationRequest) -> bytes:
    document: dict[str, Any] = {
        name: getattr(request, name)
        for name in _Request.model_fields
        if name not in ("format_version", "offsets", "classes", "metrics", "tags")
    }
    document["format_version"] = 1
    document["offsets"] = offsets_json(request.offsets)
    document["classes"] = list(request.classes)
    document["tags"] = dict(request.tags)
    document["metrics"] = [
        {"name": point.name, "value": point.value, "step": point.step, "timestamp_ms": point.timestamp_ms}
        for point in request.metrics
    ]
    return json.dumps(document).encode()


def _decode(folder: Path) -> RegistrationRequest:
    try:
        read = _Request.model_validate(json.loads((folder / REQUEST_FILE).read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        raise ServableBroken(f"{folder / REQUEST_FILE}: {first['loc']}: {first['msg']}") from error
    except RecursionError:
        raise ServableBroken(f"{folder / REQUEST_FILE} is not a request") from None
    return RegistrationRequest(
        stream=read.stream,
        state_id=read.state_id,
        snapshot_sha256=read.snapshot_sha256,
        offsets={Partition(entry.topic, entry.partition): entry.offset for entry in read.offsets},
        classes=tuple(read.classes),
        trigger=read.trigger,
        servable=folder / SERVABLE_FOLDER,
        records_trained=read.records_trained,
        average_forgetting=read.average_forgetting,
        worst_class=read.worst_class,
        parent_version=read.parent_version,
        metrics=tuple(MetricPoint(**point.model_dump()) for point in read.metrics),
        tags=read.tags,
    )


def _snapshot_sha256(file: Path) -> str | None:
    """Of a request or a receipt. None where it cannot be read, or has none."""
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    sha256 = document.get("snapshot_sha256") if isinstance(document, dict) else None
    return sha256 if isinstance(sha256, str) else None


def _name(number: int) -> str:
    return f"{number:010d}"


def _numbers(folder: Path, suffix: str) -> list[int]:
    if not folder.is_dir():
        return []
    names = (path.name.removesuffix(suffix) for path in folder.iterdir() if path.name.endswith(suffix))
    return sorted(int(name) for name in names if name.isdecimal())
