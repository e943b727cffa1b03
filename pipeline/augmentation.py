"""Random shifts, mirrorings, turns and scalings of images, the whole batch at once, keyed by the update's number.

Legend: B = rows, C = channels, H/W = height/width, P = padding
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import keyed_randomness
from pipeline.sample import InputSpec
from pipeline.settings import AugmentationSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Of one update, on the CPU."""

    indices: npt.NDArray[np.int64] | None  # (B, H + W): the padded image's row and column of each output pixel
    theta_B23: npt.NDArray[np.float32] | None  # None: no turn and no scaling


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
        self._shape = spec.shape
        self._moves = settings.crop_padding > 0 or settings.horizontal_flip
        self._resamples = settings.rotation_degrees > 0 or settings.scale > 0
        self.is_on = spec.kind == "image" and (self._moves or self._resamples)

    def draw(self, rows: int, update_number: int) -> Draws | None:
        """What will happen to so many rows, drawn on the CPU; None: nothing.

        What happens to row b depends on (seed, update number, b): one draw per row, in row order, so that it does not
        depend on how many rows there are.
        """
        if not self.is_on or not rows:
            return None
        indices, theta_B23 = None, None
        if self._moves:
            generator = keyed_randomness.generator(self._seed, "augmentation", update_number)
            indices = self._indices(generator.random((rows, 3)))
        if self._resamples:
            generator = keyed_randomness.generator(self._seed, "augmentation/turns", update_number)
            theta_B23 = self._theta(generator.random((rows, 2), dtype=np.float32))
        return Draws(indices=indices, theta_B23=theta_B23)

    def apply(self, x_BCHW: Tensor, indices: Tensor | None, theta_B23: Tensor | None, incoming: int = 0) -> Tensor:
        """A new batch of the same shape, of which the first `incoming` rows came from the stream, changed as `Draws`
        say, whose arrays lie on the batch's device. Its dtype is the input's, but float32 in 0..1 where uint8 is
        resampled.
        """
        changed = x_BCHW if indices is None else self._moved(x_BCHW, indices)
        changed = changed if theta_B23 is None else _resampled(changed, theta_B23)
        if not self._replayed_only or not incoming:
            return changed
        return torch.cat([_scaled(x_BCHW[:incoming], changed.dtype), changed[incoming:]])

    def _indices(self, drawn_B3: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        _, height, width = self._shape
        shifts_B2 = (drawn_B3[:, :2] * (2 * self._padding + 1)).astype(np.int64)
        mirrored_B = (drawn_B3[:, 2] < 0.5) & self._flip
        across_W = np.arange(width)
        rows_BH = shifts_B2[:, :1] + np.arange(height)
        columns_BW = shifts_B2[:, 1:] + np.where(mirrored_B[:, None], across_W[::-1], across_W)
        return np.concatenate([rows_BH, columns_BW], axis=1)

    def _moved(self, x_BCHW: Tensor, indices: Tensor) -> Tensor:
        rows, channels, height, _ = x_BCHW.shape
        index_BH, index_BW = indices[:, :height], indices[:, height:]
        padding = self._padding
        padded = F.pad(x_BCHW, (padding, padding, padding, padding)) if padding else x_BCHW
        batch = torch.arange(rows, device=x_BCHW.device)[:, None, None, None]
        channel = torch.arange(channels, device=x_BCHW.device)[None, :, None, None]
        return padded[batch, channel, index_BH[:, None, :, None], index_BW[:, None, None, :]]

    def _theta(self, drawn_B2: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The affine map from an output pixel to where it is taken from."""
        _, height, width = self._shape
        away_B2 = 2 * drawn_B2 - 1
        turn_B = np.deg2rad(away_B2[:, 0] * self._turn_degrees)
        size_B = 1 / (1 + away_B2[:, 1] * self._scale)  # from where in the image an output pixel is taken
        cos_B, sin_B = np.cos(turn_B) * size_B, np.sin(turn_B) * size_B
        none_B = np.zeros_like(turn_B)
        # grids run from -1 to 1 across each side, so a turn of an image that is no square must undo that
        return np.stack(
            [
                np.stack([cos_B, -sin_B * (height / width), none_B], axis=1),
                np.stack([sin_B * (width / height), cos_B, none_B], axis=1),
            ],
            axis=1,
        )


def _resampled(x_BCHW: Tensor, theta_B23: Tensor) -> Tensor:
    """About the middle; what was outside is black."""
    x_BCHW = _scaled(x_BCHW, torch.float32)
    grid = F.affine_grid(theta_B23, list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _scaled(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as the network takes them (0..1), where floating point is wanted."""
    if x.dtype == torch.uint8 and dtype.is_floating_point:
        return x.to(dtype).div_(255.0)
    return x
