"""Slight shifts and turns of an image, so that a small data set makes a long stream.

Legend: C channels, H height, W width
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

MAX_SHIFT = 1 / 14  # of the side: 2 pixels of 28
MAX_TURN_DEGREES = 10.0


def altered(
    image_HWC: npt.NDArray[np.uint8], generator: np.random.Generator | None, turn_degrees: float = 0.0
) -> npt.NDArray[np.uint8]:
    """The image turned by `turn_degrees` counter-clockwise, then, where there is a generator, shifted by up to 1/14 of
    each side and turned by up to 10 degrees more, in one resampling. (H, W) or (H, W, C); what was outside is black.

    A turn alone takes the nearest pixel, as torchvision's `rotate` and so MNIST-360 do; else bilinear.
    """
    image = Image.fromarray(image_HWC)
    if generator is None:
        turned = image.rotate(turn_degrees, Image.Resampling.NEAREST)
    else:
        shift_x, shift_y, turn = generator.uniform(-1.0, 1.0, size=3)
        turned = image.rotate(
            turn_degrees + MAX_TURN_DEGREES * turn,
            Image.Resampling.BILINEAR,
            translate=(MAX_SHIFT * image.width * shift_x, MAX_SHIFT * image.height * shift_y),
        )
    return np.asarray(turned)


def channels_first(image_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(H, W) or (H, W, C) as (C, H, W)."""
    return image_HWC[None] if image_HWC.ndim == 2 else image_HWC.transpose(2, 0, 1)
