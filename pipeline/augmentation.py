"""Random crops and mirrorings of images, the whole batch at once, keyed by the update's number.

Legend: B = rows, C = channels, H/W = height/width, P = padding
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import keyed_randomness
from pipeline.device import to_device
from pipeline.sample import InputSpec
from pipeline.settings import AugmentationSettings


class Augmentation:
    """Padded random crop and horizontal mirroring, as in He et al. 2016 (arXiv:1512.03385, section 4.2).

    Works on raw images of any dtype: pixels are moved, never interpolated. Arrays and texts pass as they are.
    """

    def __init__(self, settings: AugmentationSettings, spec: InputSpec, seed: int) -> None:
        self._padding = settings.crop_padding
        self._flip = settings.horizontal_flip
        self._seed = seed
        self.is_on = spec.kind == "image" and (settings.crop_padding > 0 or settings.horizontal_flip)

    def __call__(self, x_BCHW: Tensor, update_number: int) -> Tensor:
        """A new batch of the same shape; row b's shift and mirroring depend on (seed, update number, b)."""
        if not self.is_on:
            return x_BCHW
        rows, channels, height, width = x_BCHW.shape
        generator = keyed_randomness.generator(self._seed, "augmentation", update_number)
        # one draw per row, in row order, so that row b's does not depend on how many rows there are
        drawn_B3 = generator.random((rows, 3))
        shifts_B2 = (drawn_B3[:, :2] * (2 * self._padding + 1)).astype(np.int64)
        mirrored_B = (drawn_B3[:, 2] < 0.5) & self._flip
        across_W = np.arange(width)
        rows_BH = shifts_B2[:, :1] + np.arange(height)
        columns_BW = shifts_B2[:, 1:] + np.where(mirrored_B[:, None], across_W[::-1], across_W)
        indices = to_device(np.concatenate([rows_BH, columns_BW], axis=1), x_BCHW.device)
        index_BH, index_BW = indices[:, :height], indices[:, height:]
        padding = self._padding
        padded = F.pad(x_BCHW, (padding, padding, padding, padding)) if padding else x_BCHW
        batch = torch.arange(rows, device=x_BCHW.device)[:, None, None, None]
        channel = torch.arange(channels, device=x_BCHW.device)[None, :, None, None]
        return padded[batch, channel, index_BH[:, None, :, None], index_BW[:, None, None, :]]
