"""A network of the compact kind that begins as the newest sub-module stands, which may be narrower: it takes the first
channels.

What has been learnt so far is a better beginning than chance. The other channels, and what they say to the first ones,
are drawn anew, and the head hears little of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.backbones.backbone import Backbone
from pipeline.network import Network

_OF_NEW_CHANNELS = 0.1  # of the head's fresh weights: what it hears from channels without meaning


def warm_start(fresh: Network, present: Network, columns: Sequence[int]) -> bool:
    """The weights of `fresh` (on the CPU) from the newest sub-module of `present` and, for the classes that this one
    knows (whose columns there are the first ones, and here `columns`), from what its head makes of that one's features.
    False: it is of another kind or wider, or has narrower attention heads, and nothing was changed."""
    body = present.body.bodies[-1]
    if not _fits(body, fresh.body):
        return False
    target = fresh.body.state_dict()
    head, taught = fresh.head, present.head
    into, known = list(columns), len(columns)
    with torch.no_grad():
        for name, value in body.state_dict().items():
            target[name][tuple(slice(size) for size in value.shape)] = value.cpu()
        head.weight.mul_(_OF_NEW_CHANNELS)
        head.weight[into, : body.width] = taught.weight[:known, -body.width :].cpu()
        head.bias[into] = taught.bias[:known].cpu()
    return True


def _fits(body: Backbone, into: Backbone) -> bool:
    if body.name != into.name:
        return False
    # pruning narrows every head: in a wider one's first channels several heads would come to lie in the first
    if _head_widths(body) != _head_widths(into):
        return False
    small, large = body.state_dict(), into.state_dict()
    return small.keys() == large.keys() and all(
        value.dim() == large[name].dim()
        and all(size <= most for size, most in zip(value.shape, large[name].shape, strict=True))
        for name, value in small.items()
    )


def _head_widths(body: Backbone) -> list[int]:
    return [projection.out_features // heads for projection, heads in body.attention_heads.items()]
