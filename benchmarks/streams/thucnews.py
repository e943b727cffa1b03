"""THUCNews headlines: five steps of two subjects, one pass over 10,000 Chinese headlines, a small transformer encoder.

Headlines of ten subjects (finance, realty, stocks, education, science, society, politics, sports, game, entertainment;
Li and Sun 2007, THUCTC). `thucnews/dev.txt` below --data-root is the stream and `thucnews/test.txt` judges: lines of
text, a tab, and the subject's number. Class-incremental: among all ten subjects. The encoder has BERT-tiny's size (two
layers, width 128) and starts from random weights; characters are its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.streams.benchmark_stream import BenchmarkStream, Opened, TestPart, decoded, step_of_class
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.labelled_dataset import LabelledDataset
from producers.sample_stream import SampleStream
from producers.schedules.split import Split

_INPUT = {"max_tokens": 32}  # the longest headlines have 30 characters


class ThucNews(BenchmarkStream):
    """Subjects in the order of their numbers."""

    name: ClassVar[str] = "thucnews"
    title: ClassVar[str] = "THUCNews headlines, class-incremental, one pass"
    settings: ClassVar[Mapping[str, Any]] = {
        "batch_size": 10,
        "input": _INPUT,
        "network": {"initial_columns": 10},
        "replay": {"draw_size": 64},
    }

    def open(self, data_root: Path, seed: int, *, records: int | None = None, shuffled: bool = False) -> Opened:
        dataset = _part(data_root, "dev")
        per_step = len(dataset.classes) if shuffled else 2
        stream = SampleStream(dataset, Split(), seed=seed, records=records, classes_per_step=per_step)
        x, labels = _test_rows(data_root)
        return Opened(stream=stream, test=TestPart(x, labels, step_of_class(stream)))


def _part(data_root: Path, name: Literal["dev", "test"]) -> LabelledDataset:
    options = DatasetOptions(data_root=data_root, delimiter="\t", text_column="1", label_column="2")
    return open_dataset(f"csv:{data_root / 'thucnews' / f'{name}.txt'}", options)


@cache
def _test_rows(data_root: Path) -> tuple[npt.NDArray[np.generic], list[str]]:
    part = _part(data_root, "test")
    x = decoded([part.payload(item) for item in range(len(part))], {"input": _INPUT})
    return x, [part.classes[int(label)] for label in part.labels]
