"""Tensors whose rows rarely change, cut into blocks of rows: what did not change is linked instead of written again.

    block-learner.reservoir.x-0003.safetensors      the fourth block of the state's "learner/reservoir/x"

Legend: N = rows
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# After t samples one more changes a row of the reservoir with a chance of N / t, and a full hold-out changes about as
# seldom: from one snapshot to the next most of these rows are the same, and they are most of the bytes.
ROW_TENSORS = frozenset(
    {
        "learner/reservoir/x",
        "learner/reservoir/y",
        "learner/reservoir/logits",
        "learner/reservoir/columns",
        "learner/reservoir/subjects",
        "hold_out/x",
    }
)

# Smaller blocks are written more seldom, larger ones are fewer files to sync and to list.
_BLOCK_BYTES = 1024 * 1024
# A block of one large row would be a file for each row.
_FEWEST_ROWS = 8
# Below it a file of its own costs more than the bytes.
_SMALLEST_TENSOR_BYTES = 256 * 1024
MOST_BLOCKS_OF_A_TENSOR = 10_000

BLOCK_NAME = r"^block-[a-z][a-z_]*(\.[a-z][a-z_]*)*-[0-9]{4}\.safetensors$"
_PARTS = re.compile(r"^block-(?P<tensor>[a-z_.]+)-(?P<number>[0-9]{4})\.safetensors$", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Some consecutive rows of one tensor."""

    file_name: str
    tensor: str  # its path in the state
    rows: Tensor  # a view


def cut(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[RowBlock]]:
    """(what stays together in one file, the blocks). The cuts depend on names and shapes alone."""
    together: dict[str, Tensor] = {}
    blocks: list[RowBlock] = []
    for name, tensor in tensors.items():
        if name in ROW_TENSORS and tensor.dim() and tensor.numel() * tensor.element_size() >= _SMALLEST_TENSOR_BYTES:
            blocks += _blocks_of(name, tensor)
        else:
            together[name] = tensor
    return together, blocks


def block_of(file_name: str) -> tuple[str, int]:
    """(the tensor's path in the state, the block's number) of a name that matches `BLOCK_NAME`."""
    parts = _PARTS.match(file_name)
    assert parts is not None, f"{file_name!r} is no block's name"
    return parts["tensor"].replace(".", "/"), int(parts["number"])


def joined(rows: list[Tensor]) -> Tensor:
    """The blocks of one tensor, in their order, as one. `ValueError` where they cannot have been one."""
    first = rows[0]
    if any(block.dtype != first.dtype or not block.dim() or block.shape[1:] != first.shape[1:] for block in rows):
        raise ValueError("its blocks differ in dtype or in the shape of a row")
    return first if len(rows) == 1 else torch.cat(rows)


def _blocks_of(name: str, tensor: Tensor) -> Iterator[RowBlock]:
    row_bytes = tensor.numel() * tensor.element_size() // len(tensor)
    rows = max(_FEWEST_ROWS, _BLOCK_BYTES // row_bytes, -(-len(tensor) // MOST_BLOCKS_OF_A_TENSOR))
    for number, start in enumerate(range(0, len(tensor), rows)):
        yield RowBlock(
            file_name=f"block-{name.replace('/', '.')}-{number:04d}.safetensors",
            tensor=name,
            rows=tensor[start : start + rows],
        )
