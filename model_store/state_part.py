"""A part of a snapshot's state, every byte verified, without holding the rest of it in memory.

A state may be gigabytes of weights and momenta, and whoever draws its accuracies needs some kilobytes of it. The file
is read and summed once, from its beginning to its end, and the tensors that are wanted are kept on the way: what was
summed is what is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from model_store.manifest import TENSORS_FILE, FileSum, Manifest, NotWhole
from model_store.row_blocks import block_of
from model_store.snapshot_folder import add_blocks, check_paths, opened, read_rest, tensors_in
from pipeline.state import StateTree, join

_CHUNK_BYTES = 1024 * 1024
_LENGTH_BYTES = 8  # of the header, little-endian, at the beginning of a safetensors file
_MOST_HEADER_BYTES = 100_000_000  # the library's own bound


def read_part(folder: Path, manifest: Manifest, wanted: Collection[str]) -> StateTree:
    """The leaves at these paths of the state, and below them: "forgetting", "learner/reservoir/y". `NotWhole`."""

    def is_wanted(path: str) -> bool:
        return any(path == name or path.startswith(f"{name}/") for name in wanted)

    with opened(folder, TENSORS_FILE, manifest.sum_of(TENSORS_FILE).bytes, exactly=True) as file:
        content = _some_tensors(file, manifest.sum_of(TENSORS_FILE), is_wanted)
    tensors = tensors_in(TENSORS_FILE, content)
    add_blocks(tensors, folder, [block for block in manifest.blocks if is_wanted(block_of(block.name)[0])])
    rest = {path: value for path, value in read_rest(folder, manifest).items() if is_wanted(path)}
    check_paths([*tensors, *rest])
    return join(tensors, rest)


@dataclass(slots=True, kw_only=True)
class _Tensor:
    name: str
    about: dict[str, Any]
    begin: int  # in the file
    end: int
    content: bytearray


def _some_tensors(file: FileIO, expected: FileSum, is_wanted: Callable[[str], bool]) -> bytes:
    """A safetensors file of the wanted tensors alone, made of a larger one that is verified.

    1. The header says where each tensor lies.
    2. All the rest is summed chunk by chunk; of each the bytes of wanted tensors are kept.
    3. Nothing is used before the sum is right.
    """
    digest = hashlib.sha256()
    # 1.
    head = _exactly(file, _LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    if length > min(_MOST_HEADER_BYTES, expected.bytes - _LENGTH_BYTES):
        raise NotWhole(f"{expected.name} is not a safetensors file (its header would have {length} bytes)")
    header = _exactly(file, length)
    digest.update(head)
    digest.update(header)
    position = _LENGTH_BYTES + length
    tensors = _wanted_tensors(header, position, expected, is_wanted)
    # 2.
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        for tensor in tensors:
            begin, end = max(tensor.begin, position), min(tensor.end, position + len(chunk))
            if begin < end:
                tensor.content += chunk[begin - position : end - position]
        position += len(chunk)
    # 3.
    if position != expected.bytes or digest.hexdigest() != expected.sha256:
        raise NotWhole(f"{expected.name} does not match its SHA-256")
    return _safetensors(tensors)


def _wanted_tensors(
    header: bytes, data_begin: int, expected: FileSum, is_wanted: Callable[[str], bool]
) -> list[_Tensor]:
    try:
        tensors = [
            _Tensor(
                name=name,
                about=about,
                begin=data_begin + about["data_offsets"][0],
                end=data_begin + about["data_offsets"][1],
                content=bytearray(),
            )
            for name, about in json.loads(header).items()
            if is_wanted(name)
        ]
        is_right = all(data_begin <= tensor.begin <= tensor.end <= expected.bytes for tensor in tensors)
    except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotWhole(f"{expected.name} is not a safetensors file ({error})") from None
    if not is_right:
        raise NotWhole(f"{expected.name} is not a safetensors file (a tensor lies outside of it)")
    return tensors


def _safetensors(tensors: list[_Tensor]) -> bytes:
    header: dict[str, Any] = {}
    position = 0
    for tensor in tensors:
        header[tensor.name] = {**tensor.about, "data_offsets": [position, position + len(tensor.content)]}
        position += len(tensor.content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, *(tensor.content for tensor in tensors)])


def _exactly(file: FileIO, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        part = file.read(size - len(content))
        if not part:
            raise NotWhole(f"{TENSORS_FILE} ends in the midst of its header")
        content += part
    return bytes(content)
