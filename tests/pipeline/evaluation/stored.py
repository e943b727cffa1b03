"""A state as it comes back from disk."""

from __future__ import annotations

import json
from collections.abc import Mapping

from safetensors.torch import load, save

from pipeline.state import StateTree, join, split


def stored_and_loaded(tree: Mapping[str, object]) -> StateTree:
    """Through safetensors and JSON, as a snapshot does it."""
    tensors, facts = split(tree)
    return join(load(save(tensors)), json.loads(json.dumps(facts)))
