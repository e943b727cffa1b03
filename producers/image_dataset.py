"""Images that are decoded already, in memory or one at a time, as a data set.

Legend: N items, C channels, H height, W width
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.codec.image import encode_png
from pipeline.codec.npy import encode_npy
from producers.image_alteration import altered, channels_first
from producers.labelled_dataset import LabelledDataset, without_empty_classes


class ImageDataset(LabelledDataset):
    """`image(i)` gives uint8 (H, W) or (H, W, 3). Sent as PNG, or with `npy` as float32 (C, H, W) in 0..1.

    `original` is what subjects begin with ("mnist/train").
    """

    can_turn = True

    def __init__(
        self,
        *,
        name: str,
        original: str,
        classes: tuple[str, ...],
        labels: npt.NDArray[np.int64],
        image: Callable[[int], npt.NDArray[np.uint8]],
        encoding: Literal["png", "npy"] = "png",
    ) -> None:
        self.name = name
        self.classes, self.labels = without_empty_classes(classes, labels)
        self._original = original
        self._image = image
        self._encoding = encoding

    def payload(self, i: int) -> tuple[bytes, str]:
        return self._encoded(self._image(i))

    def augmented_payload(
        self, i: int, generator: np.random.Generator | None, turn_degrees: float = 0.0
    ) -> tuple[bytes, str]:
        return self._encoded(altered(self._image(i), generator, turn_degrees))

    def subject(self, i: int) -> str:
        return f"{self._original}/{i}"

    def _encoded(self, image_HWC: npt.NDArray[np.uint8]) -> tuple[bytes, str]:
        if self._encoding == "png":
            return encode_png(channels_first(image_HWC)), "image/png"
        x_CHW = channels_first(image_HWC)
        return encode_npy(np.ascontiguousarray(x_CHW, dtype=np.float32) / np.float32(255)), "application/x-npy"
