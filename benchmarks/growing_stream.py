"""Made streams for `growth`: vectors or images of a few numbers, whose classes are all there or come in turn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers import topics
from pipeline import keyed_randomness
from pipeline.record import Record
from pipeline.sample import Decoded, InputKind, Sample
from pipeline.settings import LearnerSettings

# Samples are made so many at a time: each block by its own number, so that a stream goes on from anywhere.
BLOCK = 500
# Half of the records are of the newest classes, half of all that have come, which are few of each.
_NEWEST = 10
_NEVER = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What is learnt, and where it is looked at."""

    name: str
    classes: int
    records: int
    checkpoints: tuple[int, ...]  # records; the last is `records`
    arriving: bool  # classes come one after the other; else all are there from the start
    network: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    kind: InputKind
    shape: tuple[int, ...]

    def classes_at(self, record: int) -> int:
        """How many have come by then, this record's included."""
        return max(1, math.ceil((record + 1) * self.classes / self.records)) if self.arriving else self.classes

    def samples(self, begin: int = 0) -> Iterator[Decoded]:
        """Without end, from this record on; `begin` is a multiple of the block. After `records` no class comes."""
        for block in range(begin // BLOCK, _NEVER):
            generator = keyed_randomness.generator(0, "growth/block", block)
            first = block * BLOCK
            noise_BD = generator.standard_normal((BLOCK, *self.shape), dtype=np.float32)
            picks_B = generator.random(BLOCK)
            for row in range(BLOCK):
                number = first + row
                known = self.classes_at(min(number, self.records - 1))
                if not self.arriving and number < known:
                    label = number  # each once at first: a thousand classes are all known early
                elif row % 2:
                    label = known - 1 - int(picks_B[row] * min(known, _NEWEST))
                else:
                    label = int(picks_B[row] * known)
                yield self._decoded(number, label, noise_BD[row])

    def _decoded(self, number: int, label: int, noise: npt.NDArray[np.float32]) -> Decoded:
        x: npt.NDArray[Any] = _centre(label, self.shape) + noise
        if self.kind == "image":
            x = np.clip(128 + 40 * x, 0, 255).astype(np.uint8)
        record = Record(topic=topics.samples(self.name), partition=0, offset=number, value=b"")
        name = f"{label:04d}"
        return Decoded(record, Sample(x=x, kind=self.kind, label=name, source="growth", id=str(number)))

    @property
    def settings(self) -> LearnerSettings:
        """The defaults but for the network, and for --evaluation-every."""
        return LearnerSettings.model_validate({"network": dict(self.network), "evaluation": dict(self.evaluation)})


_CENTRES: dict[tuple[int, tuple[int, ...]], npt.NDArray[np.float32]] = {}


def _centre(label: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Where a class's samples lie."""
    if (label, shape) not in _CENTRES:
        generator = keyed_randomness.generator(0, "growth/centre", label)
        _CENTRES[label, shape] = generator.standard_normal(shape, dtype=np.float32)
    return _CENTRES[label, shape]
