"""In which numbers the layers of a network compute; weights and losses are float32 whatever is chosen.

Legend: B = rows, D = width of the features, K = logit columns
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from pipeline.backbones.backbone import Backbone
from pipeline.network import Network

Precision = Literal["auto", "float32", "bfloat16"]


def layers_in(precision: Precision, device: torch.device, body: Backbone) -> AbstractContextManager[object]:
    """Inside, layers that gain by it compute in bfloat16: where it is asked for, or, left to us, on CUDA where the body
    prefers it."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda" and body.prefers_bfloat16):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def passed(network: Network, x: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Rows on the network's device -> logits (B, K), features (B, D), float32. The head computes in float32: so few
    products cost nothing, and small differences between classes are not rounded away."""
    with layers_in(precision, network.head.weight.device, network.body):
        features_BD: Tensor = network(x)[1]
    features_BD = features_BD.float()
    return network.head(features_BD), features_BD
