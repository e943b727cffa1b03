"""In which numbers the layers of a network compute; weights and losses are float32 whatever is chosen."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from pipeline.backbones.backbone import Backbone

Precision = Literal["auto", "float32", "bfloat16"]


def layers_in(precision: Precision, device: torch.device, body: Backbone) -> AbstractContextManager[object]:
    """Inside, layers that gain by it compute in bfloat16: where it is asked for, or, left to us, on CUDA where the body
    prefers it."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda" and body.prefers_bfloat16):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
