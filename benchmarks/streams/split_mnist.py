"""Split-MNIST: five steps of two digits, one pass, batches of 10, a perceptron with two hidden layers of 100.

The protocol of Buzzega et al. 2020 (arXiv:2004.07211) and of Mammoth's seq-mnist: 60,000 records in all, replay draws
of 128, SGD without momentum; accuracy over the 10,000 test images, class-incremental: among all ten digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from benchmarks.streams.benchmark_stream import BenchmarkStream, Opened, Published, TestPart, decoded, step_of_class
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_stream import SampleStream
from producers.schedules.split import Split


class SplitMnist(BenchmarkStream):
    """Classes in their own order, items shuffled by the seed."""

    name: ClassVar[str] = "split-mnist"
    title: ClassVar[str] = "Split-MNIST, class-incremental, one pass"
    published: ClassVar[Sequence[Published]] = (
        Published(source="DER+SD (published)", accuracies={100: 79.37, 200: 86.54, 500: 91.47}),
        Published(
            source="Mammoth's DER++, draws of 128, run here (commit e75a491, 2026-11-25; 3 seeds, at 500 one)",
            accuracies={200: 86.3, 500: 90.8},
        ),
    )
    settings: ClassVar[Mapping[str, Any]] = {"batch_size": 10, "network": {"initial_columns": 10}}

    def open(self, data_root: Path, seed: int, *, records: int | None = None, shuffled: bool = False) -> Opened:
        dataset = open_dataset("mnist", DatasetOptions(data_root=data_root))
        per_step = len(dataset.classes) if shuffled else 2
        stream = SampleStream(dataset, Split(), seed=seed, records=records, classes_per_step=per_step)
        x, labels = _test_rows(data_root)
        return Opened(stream=stream, test=TestPart(x, labels, step_of_class(stream)))


@cache
def _test_rows(data_root: Path) -> tuple[npt.NDArray[np.generic], list[str]]:
    """Once for all seeds: 10,000 images take seconds."""
    part = open_dataset("mnist", DatasetOptions(data_root=data_root, split="test"))
    x = decoded([part.payload(item) for item in range(len(part))], {})
    return x, [part.classes[int(label)] for label in part.labels]
