"""Registrations that wait on disk: they survive kills, and a registry that is away.

    <folder>/pending/<number>/request.json   oldest number first; the folder appears whole or not at all
                              servable/...
             done/<number>.json              receipts: what became of a request, until somebody has taken note
             broken/<number>/                requests that no retry can help, kept for a person to look at
             aliases.json                    the snapshots that the registry's aliases point to
             stream                          the name of the stream whose versions these are
             lock                            held by the one registrar that works on the queue

The learner submits and reads receipts; the registrar's process takes and finishes. Both may be killed at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_store.alias_file import read_aliases, write_aliases
from model_store.durable_files import (
    make_folder,
    new_folder,
    remove_folder,
    remove_temporary,
    replace_file,
    write_file,
)
from model_store.offsets import offsets_json
from model_store.registry import MetricPoint, RegisteredVersion, RegistrationRequest, ServableBroken
from pipeline.record import Partition

REQUEST_FILE = "request.json"
SERVABLE_FOLDER = "servable"
ALIASES_FILE = "aliases.json"
STREAM_FILE = "stream"


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
        self._sums: dict[tuple[Path, int], str] = {}  # (file, when it was written) -> its snapshot's SHA-256
        self._swept = False

    # -- the learner's side ----------------------------------------------------------------------------------------

    def submit(self, request: RegistrationRequest, save_servable: Callable[[Path], object]) -> Submitted:
        """Make a request durable; `OSError` where that fails, and then nothing of it is left.

        1. What submissions before this process left half written goes; the stream's name is noted.
        2. A temporary sibling: the servable (`save_servable` is `Classifier.save`), then the request.
        3. Rename: before it there is no request, after it a whole one.
        4. Where too many wait, the second oldest goes.
        """
        # 1.
        if not self._swept:
            remove_temporary(self._pending)
            remove_temporary(self.folder, STREAM_FILE)
            self._swept = True
        self._note_stream(request.stream)
        number = self._next_number()
        with new_folder(self._pending / _name(number)) as temporary:
            # 2.
            save_servable(temporary / SERVABLE_FOLDER)
            write_file(temporary / REQUEST_FILE, _encode(request))
            # 3. is `new_folder`'s end.
        # 4.
        waiting = self.pending_numbers()
        if len(waiting) <= self.max_pending:
            return Submitted(number=number)
        remove_folder(self._pending / _name(waiting[1]))
        return Submitted(number=number, dropped=waiting[1])

    def poll_receipts(self) -> list[Receipt]:
        """Receipts that this object has not handed out yet, oldest first. They stay until they are acknowledged.

        One that has decayed is set aside, and handed out as one that says so.
        """
        receipts: list[Receipt] = []
        for number in _numbers(self._done, ".json"):
            if number not in self._told:
                receipts.append(self._receipt(number))
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

        `OSError` where a file of them cannot be read, or has decayed: nobody may be sure then what can go. Each is read
        once; after that a call costs two listings.

        1. Requests. 2. Receipts: a request that has gone since 1 has left its receipt before. 3. Aliases: they are
        written before the receipt is.
        """
        requests = [self._pending / _name(number) / REQUEST_FILE for number in self.pending_numbers()]  # 1.
        receipts = [self._done / f"{_name(number)}.json" for number in _numbers(self._done, ".json")]  # 2.
        known: dict[tuple[Path, int], str] = {}
        for file in (*requests, *receipts):
            with contextlib.suppress(FileNotFoundError):  # finished or acknowledged meanwhile
                key = (file, file.stat().st_mtime_ns)
                known[key] = self._sums[key] if key in self._sums else _snapshot_sha256(file)
        self._sums = known
        aliases = self.aliases().values()  # 3.
        return frozenset(
            [sha256 for sha256 in known.values() if sha256]
            + [sha256 for snapshots in aliases for sha256 in snapshots.values()]
        )

    def waits_for(self, snapshot_sha256: str) -> bool:
        """Whether a request of this snapshot is pending. One that cannot be read is none: it comes to be set aside."""
        for number in self.pending_numbers():
            with contextlib.suppress(OSError):
                if _snapshot_sha256(self._pending / _name(number) / REQUEST_FILE) == snapshot_sha256:
                    return True
        return False

    def aliases(self) -> dict[str, dict[str, str]]:
        """{stream: {alias: SHA-256 of its version's snapshot}}, as the registrar last saw them.

        `OSError` where the file cannot be read or has decayed: `note_aliases` writes it anew.
        """
        return read_aliases(self.folder / ALIASES_FILE)

    def stream(self) -> str | None:
        """Whose versions these are; None before the first submission. `OSError` where it cannot be read."""
        try:
            return (self.folder / STREAM_FILE).read_bytes().decode(errors="replace") or None
        except FileNotFoundError:
            return None

    # -- the registrar's side --------------------------------------------------------------------------------------

    def note_aliases(self, streams: Mapping[str, Mapping[str, str]]) -> None:
        """Make them known to the learner, durably, also in the place of what cannot be read."""
        with contextlib.suppress(OSError):
            if streams == self.aliases():
                return
        make_folder(self.folder)
        write_aliases(self.folder / ALIASES_FILE, streams)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Whether this process is now the one that takes. The kernel lets go of it when the process dies.

        What takers before it left half written goes.
        """
        make_folder(self.folder)
        with (self.folder / "lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            remove_temporary(self._done)
            remove_temporary(self.folder, ALIASES_FILE)
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
        self._keep_for_a_person(self._pending / _name(number))
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

    def _note_stream(self, stream: str) -> None:
        if stream != self.stream():
            make_folder(self.folder)
            replace_file(self.folder / STREAM_FILE, stream.encode())

    def _receipt(self, number: int) -> Receipt:
        file = self._done / f"{_name(number)}.json"
        content = file.read_bytes()
        try:
            return Receipt(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            kept = self._keep_for_a_person(file)
            problem = f"what became of it is not known, its receipt has decayed: {kept}"
            return Receipt(number=number, snapshot_sha256="", version=None, tags={}, problem=problem)

    def _keep_for_a_person(self, path: Path) -> Path:
        broken = self.folder / "broken"
        make_folder(broken)
        kept = broken / f"{path.name}-{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            path.rename(kept)
        return kept

    def _write_receipt(self, receipt: Receipt) -> None:
        make_folder(self._done)
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
    average_accuracy: float | None = None  # releases before there were promotions wrote none
    average_forgetting: float | None
    worst_class: str | None
    parent_version: int | None
    goes_back: bool = False  # releases before there were adoptions wrote none
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
        average_accuracy=read.average_accuracy,
        average_forgetting=read.average_forgetting,
        worst_class=read.worst_class,
        parent_version=read.parent_version,
        goes_back=read.goes_back,
        metrics=tuple(MetricPoint(**point.model_dump()) for point in read.metrics),
        tags=read.tags,
    )


def _snapshot_sha256(file: Path) -> str:
    """Of a request or a receipt; "" in the receipt of a request that did not say. `OSError` where it is neither."""
    content = file.read_bytes()
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    sha256 = document.get("snapshot_sha256") if isinstance(document, dict) else None
    if not isinstance(sha256, str):
        raise OSError(errno.EIO, "it does not say which snapshot it is about", str(file))
    return sha256


def _name(number: int) -> str:
    return f"{number:010d}"


def _numbers(folder: Path, suffix: str) -> list[int]:
    try:
        found = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    names = (name.removesuffix(suffix) for name in found if name.endswith(suffix))
    return sorted(int(name) for name in names if name.isdecimal())
