"""Real digits: a learner that knew 0 to 3 and then learnt 4 to 7, and the rest of them without labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import keyed_randomness
from pipeline.record import Record
from pipeline.sample import Decoded, Sample
from pipeline.settings import LearnerSettings
from pipeline.state import StateTree
from pipeline.stream_learner import StreamLearner

OLD, NEW = ("0", "1", "2", "3"), ("4", "5", "6", "7")
_IN_STREAM = 100  # of each class; the rest, some 80, have no labels


def settings(**changes: Any) -> LearnerSettings:
    return LearnerSettings.model_validate(
        {
            "device": "cpu",
            "threads": 1,
            "batch_size": 10,
            "network": {"options": {"hidden": [32]}, "initial_columns": 4},
            "optimizer": {"momentum": 0.5},
            "averaging": {"rate": 0.1},
            "replay": {"capacity": 160, "draw_size": 32},
            "retention": {"der_pp": {}, "ewc_pp": {}, "ewc": {"min_records": 100}},
            "hold_out": {"share": 0.2},
            "evaluation": {"min_class_samples": 5},
            **changes,
        }
    )


@dataclass(frozen=True, kw_only=True)
class DigitsStream:
    """States at two batch boundaries, and what a job reads."""

    base: StateTree
    parent: StateTree
    records: tuple[Sample, ...]  # of the new classes, none of them held out
    unlabelled: npt.NDArray[np.generic]
    unlabelled_labels: tuple[str, ...]  # for the test's own eyes
    later: tuple[Decoded, ...]  # what comes after the parent
    all: tuple[Decoded, ...]  # the stream from its beginning

    def labelled(self) -> Iterator[tuple[npt.NDArray[np.generic], str]]:
        for sample in self.records:
            assert sample.label is not None
            yield sample.x, sample.label


@cache
def digits_stream() -> DigitsStream:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    shuffled = keyed_randomness.generator(0, "digits").permutation(len(images))
    of_class = {name: [i for i in shuffled if bunch.target[i] == int(name)] for name in (*OLD, *NEW)}
    mixed = {
        part: sorted((i for name in part for i in of_class[name][:_IN_STREAM]), key=list(shuffled).index)
        for part in (OLD, NEW)
    }
    items = [*mixed[OLD], *mixed[NEW]]
    decoded = [
        Decoded(
            Record("digits.samples", 0, offset, b""),
            Sample(x=images[i], kind="image", label=str(bunch.target[i]), source="digits", id=str(i)),
        )
        for offset, i in enumerate(items)
    ]
    learner = StreamLearner(settings())
    learn(learner, decoded[: len(mixed[OLD])])
    base = learner.state()
    learn(learner, decoded[len(mixed[OLD]) : -20])
    rest = [i for i in shuffled if bunch.target[i] < 8 and i not in set(items)]
    return DigitsStream(
        base=base,
        parent=learner.state(),
        records=tuple(
            one.sample
            for one in decoded[len(mixed[OLD]) :]
            if one.sample is not None and not learner.hold_out.chooses(one.sample)
        ),
        unlabelled=images[rest],
        unlabelled_labels=tuple(str(bunch.target[i]) for i in rest),
        later=tuple(decoded[-20:]),
        all=tuple(decoded),
    )


def learn(learner: StreamLearner, records: list[Decoded] | tuple[Decoded, ...]) -> None:
    for decoded in records:
        if learner.add(decoded):
            learner.step(learner.assembler.take())
    while learner.flush() is not None:
        pass
