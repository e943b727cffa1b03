"""Augmented views of a job's rows: images shifted, mirrored, turned; texts and arrays as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline import keyed_randomness
from pipeline.augmentation import Augmentation
from pipeline.device import to_device
from pipeline.sample import InputSpec
from pipeline.settings import AugmentationSettings


class AugmentedViews:
    """Keyed by (seed, purpose, number): the same after every restart."""

    def __init__(
        self, settings: AugmentationSettings, spec: InputSpec, *, seed: int, purpose: str, device: torch.device
    ) -> None:
        drawn = keyed_randomness.torch_seed(seed, f"{purpose}/views") % 2**32
        self._augmentation = Augmentation(settings, spec, drawn)
        self._device = device

    def of(self, x_B: Tensor, number: int) -> Tensor:
        """Rows on the device (B, ...) -> as many. Bytes become floats from 0 to 1, which can be mixed."""
        draws = self._augmentation.draw(len(x_B), number)
        if draws is not None:
            indices, theta_B23 = (
                None if drawn is None else to_device(drawn, self._device) for drawn in (draws.indices, draws.theta_B23)
            )
            x_B = self._augmentation.apply(x_B, indices, theta_B23)
        return x_B.to(torch.float32) / 255 if x_B.dtype == torch.uint8 else x_B
