"""Split-CIFAR-10: five steps of two classes, batches of 32, ResNet-18, crops and mirrorings.

The protocol of Buzzega et al. 2020 (arXiv:2004.07211) and of Mammoth's seq-cifar10: replay draws of 32, SGD without
momentum; accuracy over the 10,000 test images, class-incremental. The papers pass 50 times over
each step (`--epochs 50`); one pass is the default here. Below --data-root lies one of `cifar-10-batches-py` (as
torchvision has it), a folder `cifar10` with `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, or the same in
`cifar10-jpeg.zip`.
"""

from __future__ import annotations

import atexit
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.streams.benchmark_stream import BenchmarkStream, Opened, Published, TestPart, decoded, step_of_class
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.labelled_dataset import LabelledDataset
from producers.sample_stream import SampleStream
from producers.schedules.split import Split


class SplitCifar10(BenchmarkStream):
    """Classes in the alphabet's order, which is CIFAR-10's own."""

    name: ClassVar[str] = "split-cifar10"
    title: ClassVar[str] = "Split-CIFAR-10, class-incremental"
    published: ClassVar[Sequence[Published]] = (
        Published(source="DER+SD, 50 epochs (published)", accuracies={200: 66.12, 500: 75.96}),
    )
    # Mammoth, utils/best_args.py of 2021 to 2023; three passes, since batch norm mixes the rows of one
    arguments: ClassVar[Mapping[tuple[str, int], Mapping[str, Any]]] = {
        ("der_pp", buffer): {
            "replay": {"fused": False},
            "retention": {"der_pp": {"alpha": alpha, "beta": 0.5}},
        }
        for buffer, alpha in ((200, 0.1), (500, 0.2))
    }
    settings: ClassVar[Mapping[str, Any]] = {
        "batch_size": 32,
        "network": {"backbone": "resnet18", "initial_columns": 10},
        "replay": {"draw_size": 32},
        "augmentation": {"crop_padding": 4, "horizontal_flip": True},
    }

    def open(self, data_root: Path, seed: int, *, records: int | None = None, shuffled: bool = False) -> Opened:
        dataset = cifar10_part(data_root, "train")
        per_step = len(dataset.classes) if shuffled else 2
        stream = SampleStream(dataset, Split(), seed=seed, records=records, classes_per_step=per_step)
        x, labels = _test_rows(data_root)
        return Opened(stream=stream, test=TestPart(x, labels, step_of_class(stream)))


def cifar10_part(data_root: Path, split: Literal["train", "test"]) -> LabelledDataset:
    """The train or the test part, from whatever form of it lies there. Raises `UserError`."""
    if (data_root / "cifar-10-batches-py").is_dir():
        return open_dataset("cifar10", DatasetOptions(data_root=data_root, split=split))
    folder = data_root / "cifar10"
    if not folder.is_dir():
        folder = _unpacked(data_root / "cifar10-jpeg.zip")
    return open_dataset(f"folder:{folder}", DatasetOptions(split=split))


@cache
def _unpacked(archive: Path) -> Path:
    """Its folder, for as long as this process lives. Raises `UserError`."""
    try:
        content = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"no CIFAR-10 in {archive.parent} ({error}): it wants cifar-10-batches-py, a folder cifar10 with train and "
            "test in it, or cifar10-jpeg.zip"
        ) from error
    folder = tempfile.TemporaryDirectory(prefix="palimpsest-cifar10-")
    atexit.register(folder.cleanup)
    with content:
        content.extractall(folder.name)
    return Path(folder.name)


@cache
def _test_rows(data_root: Path) -> tuple[npt.NDArray[np.generic], list[str]]:
    part = cifar10_part(data_root, "test")
    x = decoded([part.payload(item) for item in range(len(part))], {})
    return x, [part.classes[int(label)] for label in part.labels]
