"""The manifest of a snapshot: written last, so its presence says that the other files are there; its sums say whole.

It is JSON with a seal: the SHA-256 of its own canonical text without the seal. A flipped byte in a fact is found like
one in a tensor. The seal guards against decay, not against forgery; what a forger could write is bounded by the strict
model below: known file names only, nothing that leads out of the folder, no size that no state has.

Format version 2 has blocks of rows beside the three files; version 1, which had none, is still read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from model_store.row_blocks import BLOCK_NAME, MOST_BLOCKS_OF_A_TENSOR, ROW_TENSORS, block_of
from pipeline.record import Partition
from pipeline.state import Json
from pipeline.user_error import UserError

_READ_VERSIONS = (1, 2)
TENSORS_FILE = "state.safetensors"
STATE_FILE = "state.json"
OUTBOX_FILE = "outbox.jsonl"
MANIFEST_FILE = "manifest.json"
# A manifest holds names and numbers; anything larger is not one, and is not read into memory.
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
# Class names, decisions, counts: a thousandth of it is much. JSON takes some ten times its size when it is read.
MAX_STATE_JSON_BYTES = 256 * 1024 * 1024
# The most parameters a network may have, sixteen times: weights, momenta and what retention terms keep of each.
_MAX_FILE_BYTES = 2**31 * 4 * 16
# So many entries of a long list are encoded at once. `json` does not let other threads run before it is through, and
# encoding 10,000 decisions at once stopped the training thread for 16 ms.
_ENTRIES_AT_ONCE = 32

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class NotWhole(Exception):
    """What should be a snapshot is not one: truncated, decayed, unfinished. `why` is one line."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Sum(_Strict):
    bytes: int = Field(ge=0, le=_MAX_FILE_BYTES)
    sha256: Sha256


class FileSum(_Sum):
    """Size and sum of one file."""

    name: Literal["state.safetensors", "state.json", "outbox.jsonl"]


class BlockSum(_Sum):
    """Size and sum of one block of rows."""

    name: Annotated[str, StringConstraints(pattern=BLOCK_NAME, max_length=100)]


class PartitionOffset(_Strict):
    """The next record to consume of one partition."""

    topic: str
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)


class Manifest(_Strict):
    """Everything about a snapshot but its state and outbox."""

    format_version: Literal[1, 2] = 2
    generation: int = Field(ge=0)
    sequence: int = Field(ge=0)
    offsets: list[PartitionOffset]
    facts: dict[str, Any]
    files: list[FileSum]
    blocks: list[BlockSum] = Field(default=[], max_length=MOST_BLOCKS_OF_A_TENSOR * len(ROW_TENSORS))
    written_at: str

    @field_validator("files")
    @classmethod
    def _each_file_once(cls, files: list[FileSum]) -> list[FileSum]:
        names = sorted(file.name for file in files)
        if names != sorted((TENSORS_FILE, STATE_FILE, OUTBOX_FILE)):
            raise ValueError(f"files must be the three of a snapshot, each once, not {names}")
        return files

    @field_validator("blocks")
    @classmethod
    def _each_tensor_s_blocks_in_order(cls, blocks: list[BlockSum]) -> list[BlockSum]:
        counts: dict[str, int] = {}
        for block in blocks:
            tensor, number = block_of(block.name)
            if number != counts.get(tensor, 0):
                raise ValueError(f"{block.name} stands where block {counts.get(tensor, 0)} of its tensor belongs")
            counts[tensor] = number + 1
        return blocks

    @field_validator("written_at")
    @classmethod
    def _a_moment(cls, written_at: str) -> str:
        if datetime.fromisoformat(written_at).tzinfo is None:
            raise ValueError("written_at has no time zone")
        return written_at

    @model_validator(mode="after")
    def _blocks_since_version_2(self) -> Manifest:
        if ("blocks" in self.model_fields_set) != (self.format_version >= 2):
            raise ValueError(f"blocks belong to format version 2, and to each of it; this is {self.format_version}")
        return self

    @property
    def written(self) -> datetime:
        """`written_at` as a moment, in UTC."""
        return datetime.fromisoformat(self.written_at).astimezone(UTC)

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
        Whether a block was written or linked makes no difference.
        """
        offsets = sorted([entry.topic, entry.partition, entry.offset] for entry in self.offsets)
        tensors, rest = self.sum_of(TENSORS_FILE).sha256, self.sum_of(STATE_FILE).sha256
        identity: list[object] = [tensors, rest, offsets]
        if self.format_version >= 2:
            identity.append(sorted([block.name, block.sha256] for block in self.blocks))
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
    if version not in _READ_VERSIONS:
        raise UserError(
            f"this snapshot has format version {version}, this release reads {' and '.join(map(str, _READ_VERSIONS))}; "
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


def canonical_json_pieces(facts: Mapping[str, object]) -> Iterator[bytes]:
    """`canonical_json` of an object, in pieces that each take little time: other threads run between them."""
    yield b"{"
    for place, key in enumerate(sorted(facts)):
        yield (b"," if place else b"") + canonical_json(key) + b":"
        value = facts[key]
        if not isinstance(value, list) or len(value) <= _ENTRIES_AT_ONCE:
            yield canonical_json(value)
            continue
        for start in range(0, len(value), _ENTRIES_AT_ONCE):
            entries = canonical_json(value[start : start + _ENTRIES_AT_ONCE])
            yield (b"," if start else b"[") + entries[1:-1]
        yield b"]"
    yield b"}"


def _seal(document: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()
