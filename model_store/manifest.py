"""The manifest of a snapshot: written last, so its presence says that the other files are there; its sums say whole.

It is JSON with a seal: the SHA-256 of its own canonical text without the seal. A flipped byte in a fact is found like
one in a tensor. The seal guards against decay, not against forgery; what a forger could write is bounded by the strict
model below: known file names only, nothing that leads out of the folder.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from pipeline.record import Partition
from pipeline.state import Json
from pipeline.user_error import UserError

FORMAT_VERSION = 1
TENSORS_FILE = "state.safetensors"
STATE_FILE = "state.json"
OUTBOX_FILE = "outbox.jsonl"
MANIFEST_FILE = "manifest.json"
# A manifest holds names and numbers; anything larger is not one, and is not read into memory.
MAX_MANIFEST_BYTES = 64 * 1024 * 1024

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class NotWhole(Exception):
    """What should be a snapshot is not one: truncated, decayed, unfinished. `why` is one line."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileSum(_Strict):
    """Size and sum of one file."""

    name: Literal["state.safetensors", "state.json", "outbox.jsonl"]
    bytes: int = Field(ge=0)
    sha256: Sha256


class PartitionOffset(_Strict):
    """The next record to consume of one partition."""

    topic: str
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)


class Manifest(_Strict):
    """Everything about a snapshot but its state and outbox."""

    format_version: Literal[1] = 1
    generation: int = Field(ge=0)
    sequence: int = Field(ge=0)
    offsets: list[PartitionOffset]
    facts: dict[str, Any]
    files: list[FileSum]
    written_at: str

    @field_validator("files")
    @classmethod
    def _each_file_once(cls, files: list[FileSum]) -> list[FileSum]:
        names = sorted(file.name for file in files)
        if names != sorted((TENSORS_FILE, STATE_FILE, OUTBOX_FILE)):
            raise ValueError(f"files must be the three of a snapshot, each once, not {names}")
        return files

    def sum_of(self, name: str) -> FileSum:
        return next(file for file in self.files if file.name == name)

    @property
    def partition_offsets(self) -> dict[Partition, int]:
        return {Partition(entry.topic, entry.partition): entry.offset for entry in self.offsets}

    @property
    def state_sha256(self) -> str:
        """One SHA-256 over the sums of the state's files and the offsets.

        It names *what was learnt*, not this copy of it: where a killed learner falls back and comes to the same state
        at the same offsets again, the sum is the same, and a version registered from it is not registered twice.
        """
        identity = [
            self.sum_of(TENSORS_FILE).sha256,
            self.sum_of(STATE_FILE).sha256,
            sorted([entry.topic, entry.partition, entry.offset] for entry in self.offsets),
        ]
        return hashlib.sha256(canonical_json(identity)).hexdigest()

    def encode(self) -> bytes:
        """The manifest's file, sealed."""
        document: dict[str, Json] = self.model_dump()
        return canonical_json({**document, "seal": _seal(document)}, indent=1) + b"\n"


def parse_manifest(content: bytes) -> Manifest:
    """Inverse of `encode`.

    1. JSON, and the seal: `NotWhole`.
    2. The format version: an unknown one under a right seal is another release's, which must not be passed over as if
       it were broken (the learner would go on from an older state): `UserError`.
    3. The strict model: `NotWhole`.
    """
    # 1.
    try:
        document = json.loads(content)
        if not isinstance(document, dict):
            raise NotWhole(f"{MANIFEST_FILE} is not a JSON object")
        seal = document.pop("seal", None)
        sealed = seal == _seal(document)
    except (ValueError, RecursionError) as error:
        raise NotWhole(f"{MANIFEST_FILE} is not JSON ({error})") from None
    if not sealed:
        raise NotWhole(f"{MANIFEST_FILE} does not match its own seal")
    # 2.
    version = document.get("format_version")
    if type(version) is not int:
        raise NotWhole(f"{MANIFEST_FILE} has no format version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"this snapshot has format version {version}, this release reads {FORMAT_VERSION}; "
            "use the release that wrote it, or give another --state"
        )
    # 3.
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise NotWhole(f"{MANIFEST_FILE}: {where}: {first['msg']}") from None


def canonical_json(value: object, *, indent: int | None = None) -> bytes:
    """The same bytes for the same value: sorted keys, ASCII. NaN and infinities stay, as Python's json writes them."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, sort_keys=True, separators=separators, indent=indent).encode()


def _seal(document: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()
