"""Texts in memory as a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.codec.text import encode_text
from producers.labelled_dataset import LabelledDataset, classes_and_labels

CONTENT_TYPE = "text/plain; charset=utf-8"
MAX_LEFT_OUT = 1 / 14  # of the characters, as an image is shifted by up to 1/14 of its side


class TextDataset(LabelledDataset):
    """One text and one class name an item. A change leaves a short run of characters out."""

    def __init__(self, *, name: str, texts: Sequence[str], labels: Sequence[str]) -> None:
        self.name = name
        self.classes, self.labels = classes_and_labels(labels)
        self._texts = texts

    def payload(self, i: int) -> tuple[bytes, str]:
        return encode_text(self._texts[i]), CONTENT_TYPE

    def augmented_payload(
        self, i: int, generator: np.random.Generator | None, turn_degrees: float = 0.0
    ) -> tuple[bytes, str]:
        assert turn_degrees == 0.0, "a text cannot be turned"
        if generator is None:
            return self.payload(i)
        text = self._texts[i]
        left_out = int(generator.integers(0, int(len(text) * MAX_LEFT_OUT), endpoint=True))
        start = int(generator.integers(0, len(text) - left_out, endpoint=True))
        return encode_text(text[:start] + text[start + left_out :]), CONTENT_TYPE
