"""Random shifts, mirrorings, turns and scalings of images, the whole batch at once, keyed by the update's number.

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
    """Padded random crop and horizontal mirroring, as in He et al. 2016 (arXiv:1512.03385, section 4.2), which move
    pixels and interpolate nothing; then, where they are asked for, a turn and a scaling in one bilinear resampling.

    Arrays and texts pass as they are.
    """

    def __init__(self, settings: AugmentationSettings, spec: InputSpec, seed: int) -> None:
        self._padding = settings.crop_padding
        self._flip = settings.horizontal_flip
        self._turn_degrees = settings.rotation_degrees
        self._scale = settings.scale
        self._replayed_only = settings.rows == "replayed"
        self._seed = seed
        self._moves = settings.crop_padding > 0 or settings.horizontal_flip
        self._resamples = settings.rotation_degrees > 0 or settings.scale > 0
        self.is_on = spec.kind == "image" and (self._moves or self._resamples)

    def __call__(self, x_BCHW: Tensor, update_number: int, incoming: int = 0) -> Tensor:
        """A new batch of the same shape, of which the first `incoming` rows came from the stream; what happens to row b
        depends on (seed, update number, b). Its dtype is the input's, but float32 in 0..1 where uint8 is resampled.
        """
        if not self.is_on:
            return x_BCHW
        changed = self._changed(x_BCHW, update_number)
        if not self._replayed_only or not incoming:
            return changed
        return torch.cat([_scaled(x_BCHW[:incoming], changed.dtype), changed[incoming:]])

    def _changed(self, x_BCHW: Tensor, update_number: int) -> Tensor:
        # one draw per row, in row order, so that row b's does not depend on how many rows there are
        if self._moves:
            generator = keyed_randomness.generator(self._seed, "augmentation", update_number)
            x_BCHW = self._moved(x_BCHW, generator.random((len(x_BCHW), 3)))
        if self._resamples:
            generator = keyed_randomness.generator(self._seed, "augmentation/turns", update_number)
            x_BCHW = self._resampled(x_BCHW, generator.random((len(x_BCHW), 2), dtype=np.float32))
        return x_BCHW

    def _moved(self, x_BCHW: Tensor, drawn_B3: np.ndarray) -> Tensor:
        rows, channels, height, width = x_BCHW.shape
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

    def _resampled(self, x_BCHW: Tensor, drawn_B2: np.ndarray) -> Tensor:
        """About the middle; what was outside is black."""
        height, width = x_BCHW.shape[2:]
        away_B2 = 2 * drawn_B2 - 1
        turn_B = np.deg2rad(away_B2[:, 0] * self._turn_degrees)
        size_B = 1 / (1 + away_B2[:, 1] * self._scale)  # from where in the image an output pixel is taken
        cos_B, sin_B = np.cos(turn_B) * size_B, np.sin(turn_B) * size_B
        none_B = np.zeros_like(turn_B)
        # grids run from -1 to 1 across each side, so a turn of an image that is no square must undo that
        theta_B23 = np.stack(
            [
                np.stack([cos_B, -sin_B * (height / width), none_B], axis=1),
                np.stack([sin_B * (width / height), cos_B, none_B], axis=1),
            ],
            axis=1,
        )
        x_BCHW = _scaled(x_BCHW, torch.float32)
        grid = F.affine_grid(to_device(theta_B23, x_BCHW.device), list(x_BCHW.shape), align_corners=False)
        return F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _scaled(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as the network takes them (0..1), where floating point is wanted."""
    if x.dtype == torch.uint8 and dtype.is_floating_point:
        return x.to(dtype).div_(255.0)
    return x
