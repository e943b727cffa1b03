"""Data sets made for tests: small, and with payloads that tell which item they are and what was done to it."""

from __future__ import annotations

import numpy as np

from producers.labelled_dataset import LabelledDataset


class TellingDataset(LabelledDataset):
    """`sizes[k]` items of class k, in turn; payloads are "<item>", or "<item> changed" and "... turned <degrees>"."""

    can_turn = True

    def __init__(self, sizes: dict[str, int], name: str = "telling") -> None:
        self.name = name
        self.classes = tuple(sizes)
        self.labels = np.repeat(np.arange(len(sizes)), list(sizes.values()))

    def payload(self, i: int) -> tuple[bytes, str]:
        return str(i).encode(), "text/plain"

    def augmented_payload(
        self, i: int, generator: np.random.Generator | None, turn_degrees: float = 0.0
    ) -> tuple[bytes, str]:
        changed = "" if generator is None else f" changed {generator.integers(1_000_000)}"
        turned = f" turned {turn_degrees:.1f}" if turn_degrees else ""
        return f"{i}{changed}{turned}".encode(), "text/plain"
