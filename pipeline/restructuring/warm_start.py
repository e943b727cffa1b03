"""A temporary network that begins as the newest sub-module stands, which may be narrower: it takes the first channels.

What has been learnt so far is a better beginning than chance. The other channels, and what they say to the first ones,
are drawn anew.

Legend: D = width of the temporary network's features, W = width of the newest sub-module's, K = logit columns
"""

from __future__ import annotations

import torch

from pipeline.backbones.backbone import Backbone
from pipeline.backbones.sub_modules import SubModules
from pipeline.network import Network

_OF_NEW_CHANNELS = 0.1  # of the head's fresh weights: what it hears from channels without meaning


def warm_start(temporary: Network, present: Network, classes: int) -> bool:
    """The temporary network's weights (on the CPU) from the newest sub-module of `present` and, for its first `classes`
    columns, from what the head makes of that one's features. False: it is of another kind or wider, and nothing was
    changed."""
    body = present.body.bodies[-1] if isinstance(present.body, SubModules) else present.body
    if not _fits(body, temporary.body):
        return False
    target = temporary.body.state_dict()
    head, taught = temporary.head, present.head
    known = min(classes, head.out_features)
    with torch.no_grad():
        for name, value in body.state_dict().items():
            target[name][tuple(slice(size) for size in value.shape)] = value.cpu()
        head.weight.mul_(_OF_NEW_CHANNELS)
        head.weight[:known, : body.width] = taught.weight[:known, -body.width :].cpu()
        head.bias[:known] = taught.bias[:known].cpu()
    return True


def _fits(body: Backbone, into: Backbone) -> bool:
    if body.name != into.name:
        return False
    small, large = body.state_dict(), into.state_dict()
    return small.keys() == large.keys() and all(
        value.dim() == large[name].dim()
        and all(size <= most for size, most in zip(value.shape, large[name].shape, strict=True))
        for name, value in small.items()
    )
