"""What `ingest` sends: arrays and JPEGs, made beforehand and sent again and again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipeline import keyed_randomness
from pipeline.codec.image import encode_jpeg
from pipeline.codec.npy import encode_npy
from producers.labelled_dataset import LabelledDataset

_CLASSES = 10
# So many payloads are made, and sent again and again: the bytes to be read are as many.
DISTINCT = 512


class PreparedPayloads(LabelledDataset):
    """Payloads made beforehand, in turn; each item is an original of its own, and its number's last digit its class."""

    def __init__(self, name: str, content_type: str, payloads: Sequence[bytes], items: int) -> None:
        self.name = name
        self.labels = np.arange(items, dtype=np.int64) % min(items, _CLASSES)
        self.classes = tuple(str(number) for number in range(min(items, _CLASSES)))
        self._content_type = content_type
        self._payloads = payloads

    def payload(self, i: int) -> tuple[bytes, str]:
        return self._payloads[i % len(self._payloads)], self._content_type

    def augmented_payload(
        self, i: int, generator: np.random.Generator | None, turn_degrees: float = 0.0
    ) -> tuple[bytes, str]:
        return self.payload(i)  # reading a repeat costs the same


def arrays(items: int) -> PreparedPayloads:
    """float32 in 0..1, as MNIST's images are sent with `--encoding npy`."""
    x_NHW = keyed_randomness.generator(0, "ingest/arrays").random((min(items, DISTINCT), 28, 28), dtype=np.float32)
    return PreparedPayloads("arrays", "application/x-npy", [encode_npy(x_HW) for x_HW in x_NHW], items)


def jpegs(items: int, side: int) -> PreparedPayloads:
    """Blotches of colour under a little noise: about as many bytes a pixel as photographs have."""
    generator = keyed_randomness.generator(0, "ingest/jpegs")
    payloads = []
    for _ in range(min(items, DISTINCT)):
        coarse_HWC = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        smooth_HWC = np.asarray(Image.fromarray(coarse_HWC).resize((side, side), Image.Resampling.BICUBIC))
        noisy_HWC = np.clip(smooth_HWC + generator.normal(0.0, 8.0, smooth_HWC.shape), 0, 255).astype(np.uint8)
        payloads.append(encode_jpeg(np.ascontiguousarray(noisy_HWC.transpose(2, 0, 1))))
    return PreparedPayloads(f"jpegs-{side}", "image/jpeg", payloads, items)
