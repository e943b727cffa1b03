"""State trees: what a component saves and loads, and one SHA-256 over it.

A state tree is a dict whose leaves are tensors or plain JSON values; components nest theirs. Flattened, the tensors
go into a safetensors file under "a/b/c" and the rest into JSON. Nothing else can be in it, so nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TypeAlias, cast

import torch
from torch import Tensor

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
StateTree: TypeAlias = "dict[str, Tensor | Json | StateTree]"


def split(tree: Mapping[str, object], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Flatten a tree into ({path: tensor}, {path: JSON}); `join` is its inverse. Keys must not hold "/".

    A dict that holds no tensor anywhere is one JSON leaf, so that JSON objects keep arbitrary keys.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Json] = {}
    for key, value in tree.items():
        if "/" in key:
            raise ValueError(f"a state key must not hold '/': {key!r}")
        path = f"{prefix}{key}"
        if isinstance(value, Tensor):
            tensors[path] = value
        elif isinstance(value, Mapping) and _holds_tensor(value):
            inner_tensors, inner_facts = split(value, f"{path}/")
            tensors.update(inner_tensors)
            facts.update(inner_facts)
        else:
            facts[path] = cast(Json, value)  # json.dumps refuses what is not JSON
    return tensors, facts


def join(tensors: Mapping[str, Tensor], facts: Mapping[str, Json]) -> StateTree:
    """Rebuild the tree that `split` flattened, its keys in sorted order whatever the order of the leaves.

    Files give tensors back in another order at every reading; a component that adds them up in that order would not be
    the same after each restart.
    """
    tree: StateTree = {}
    leaves: list[tuple[str, Tensor | Json]] = [*tensors.items(), *facts.items()]
    for path, leaf in sorted(leaves, key=lambda item: item[0]):
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            assert isinstance(child, dict), f"{path!r} runs through a leaf"
            node = cast(StateTree, child)
        node[name] = leaf
    return tree


def fingerprint(tree: Mapping[str, object]) -> str:
    """One SHA-256 (hex) over every tensor's name, dtype, shape and bytes and over the canonical JSON of the rest."""
    tensors, facts = split(tree)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=True).encode())
    return digest.hexdigest()


def _holds_tensor(tree: Mapping[str, object]) -> bool:
    return any(
        isinstance(value, Tensor) or (isinstance(value, Mapping) and _holds_tensor(value)) for value in tree.values()
    )
