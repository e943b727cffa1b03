"""The contract of a benchmark's stream: what is sent, what judges the learner, and the protocol's own settings.

Legend: N = test rows
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.codec.record_decoder import RecordDecoder
from pipeline.settings import InputSettings, LearnerSettings
from pipeline.stream_learner import StreamLearner
from producers.sample_stream import SampleStream


class TestPart:
    """Test rows, decoded, and which of them judge which step."""

    __test__ = False  # not a test case, whatever pytest thinks of its name

    def __init__(
        self, x: npt.NDArray[np.generic], labels: Sequence[str], step_of_class: Mapping[str, int] | None
    ) -> None:
        """`step_of_class` None: the steps share classes, so that only the whole is judged."""
        self.x = x
        self.labels = labels
        self.step_N: npt.NDArray[np.int64] | None = None
        if step_of_class is not None:
            self.step_N = np.array([step_of_class[label] for label in labels])

    @property
    def step_sizes(self) -> npt.NDArray[np.int64]:
        """Rows of each step."""
        assert self.step_N is not None, "the steps share classes"
        return np.bincount(self.step_N)

    def accuracies(self, learner: StreamLearner, steps: int) -> npt.NDArray[np.float64]:
        """Accuracy on each step's classes, among all classes known so far."""
        right_N = self._right(learner)
        return np.array([right_N[self.step_N == step].mean() for step in range(steps)])

    def accuracy(self, learner: StreamLearner) -> float:
        """Over all rows."""
        return float(self._right(learner).mean())

    def _right(self, learner: StreamLearner) -> npt.NDArray[np.bool_]:
        columns_N = np.array([learner.class_columns.get(label, -1) for label in self.labels])
        right_N: npt.NDArray[np.bool_] = learner.predict_columns(self.x) == columns_N
        return right_N


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A stream for one seed, and its test part."""

    stream: SampleStream
    test: TestPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Somebody else's accuracies, in percent by buffer, to stand below ours in the table."""

    source: str
    accuracies: Mapping[int, float]


class BenchmarkStream(ABC):
    """One file of `benchmarks/streams/` holds one subclass; `_` in the file's name is `-` in the stream's."""

    name: ClassVar[str]
    title: ClassVar[str]  # of its table
    published: ClassVar[Sequence[Published]] = ()
    arguments: ClassVar[Mapping[tuple[str, int], Mapping[str, Any]]] = {}  # (method, buffer) -> the authors' own
    settings: ClassVar[Mapping[str, Any]] = {}  # of the learner, as the protocol has them; methods may change them

    @abstractmethod
    def open(self, data_root: Path, seed: int, *, records: int | None = None, shuffled: bool = False) -> Opened:
        """`records` None: the data set once. `shuffled`: all classes mixed from the first record to the last, for joint
        training. Raises `UserError` where the data is not there."""


def decoded(payloads: Sequence[tuple[bytes, str]], settings: Mapping[str, Any]) -> npt.NDArray[np.generic]:
    """Payloads (bytes, content type) as the learner's decoder reads them, stacked."""
    decoder = RecordDecoder(LearnerSettings.model_validate(settings).input if settings else InputSettings())
    return np.stack([decoder.decode_payload(*payload)[0] for payload in payloads])


def step_of_class(stream: SampleStream) -> dict[str, int]:
    """{class: the step it comes in}, of a stream whose classes never come back."""
    classes = stream.dataset.classes
    return {
        classes[int(stream.dataset.labels[item])]: int(step)
        for item, step in zip(stream.item_N, stream.step_N, strict=True)
    }
