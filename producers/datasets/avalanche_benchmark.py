"""`avalanche:NAME` or `avalanche:NAME/EXPERIENCES`: the train stream of one of Avalanche's classic benchmarks.

Its experiences are the steps, in its own order, and so ce_task. Needs the extra: pip install palimpsest[avalanche].
Carta et al. 2023, "Avalanche: A PyTorch Library for Deep Continual Learning", JMLR 24.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions, DatasetSource
from producers.datasets.torchvision_images import open_torchvision
from producers.image_dataset import ImageDataset
from producers.labelled_dataset import LabelledDataset, classes_and_labels

DEFAULT_EXPERIENCES = 5
# Avalanche downloads whatever is missing, without asking. These read torchvision's files, which are looked for first.
TORCHVISION_FILES = {
    "SplitMNIST": "MNIST",
    "PermutedMNIST": "MNIST",
    "RotatedMNIST": "MNIST",
    "SplitFMNIST": "FashionMNIST",
    "SplitCIFAR10": "CIFAR10",
    "SplitCIFAR100": "CIFAR100",
}


class AvalancheSource(DatasetSource):
    forms = ("avalanche:NAME",)

    def open(self, head: str, argument: str, options: DatasetOptions) -> LabelledDataset:
        """1. Find the benchmark, 2. see that its files are there, 3. make it, 4. its experiences' labels."""
        # 1.
        name, _, count = argument.partition("/")
        if count and not (count.isascii() and count.isdecimal() and int(count) > 0):
            raise UserError(
                f"avalanche:{argument}: {count!r} is no number of experiences; write avalanche:SplitMNIST/5"
            )
        make = _benchmark(name)
        # 2.
        if name in TORCHVISION_FILES:
            for split in ("train", "test"):  # Avalanche opens both
                open_torchvision(
                    TORCHVISION_FILES[name],
                    DatasetOptions(data_root=options.data_root, split=split, download=options.download),
                )
        elif not options.download:
            raise UserError(f"avalanche:{name} may download its files; allow it with --download")
        # 3.
        benchmark = _made(make, name, int(count or DEFAULT_EXPERIENCES), options)
        # 4.
        stream = benchmark.train_stream if options.split == "train" else benchmark.test_stream
        return AvalancheBenchmark(name, [experience.dataset for experience in stream], options)


class AvalancheBenchmark(ImageDataset):
    """The experiences' items, one experience after the other."""

    def __init__(self, name: str, experiences: list[Any], options: DatasetOptions) -> None:
        lengths = [len(experience) for experience in experiences]
        starts = np.cumsum([0, *lengths])
        steps = np.repeat(np.arange(len(experiences)), lengths)

        def image(i: int) -> npt.NDArray[np.uint8]:
            step = int(steps[i])
            return _pixels(experiences[step][i - int(starts[step])][0], name)

        names = [str(int(target)) for experience in experiences for target in experience.targets]
        classes, labels = classes_and_labels(names)
        super().__init__(
            name=name.lower(),
            original=f"{name.lower()}/{options.split}",
            classes=classes,
            labels=labels,
            image=image,
            encoding=options.encoding or "png",
        )
        self.steps = steps


def _benchmark(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of optional solvers that have nothing to do with its benchmarks
            from avalanche.benchmarks import classic
    except ImportError as error:
        raise UserError(f"avalanche:{name} needs Avalanche ({error}): pip install palimpsest[avalanche]") from error
    make = getattr(classic, name, None)
    if not inspect.isfunction(make):
        raise UserError(
            f"Avalanche has no benchmark {name!r}; it is one of avalanche.benchmarks.classic: SplitMNIST, ..."
        )
    return make


def _made(make: Any, name: str, experiences: int, options: DatasetOptions) -> Any:
    """The benchmark, without the normalisation that most of them add."""
    wanted = {
        "n_experiences": experiences,
        "seed": options.seed,
        "train_transform": None,
        "eval_transform": None,
        "dataset_root": str(options.data_root.expanduser()),
    }
    accepted = inspect.signature(make).parameters
    try:
        return make(**{key: value for key, value in wanted.items() if key in accepted})
    except (TypeError, ValueError, RuntimeError, OSError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"avalanche:{name} with {experiences} experiences cannot be made: {reason}") from error


def _pixels(x: Any, name: str) -> npt.NDArray[np.uint8]:
    """A PIL image, or a tensor (C, H, W) in 0..1, as uint8 (H, W) or (H, W, 3)."""
    if isinstance(x, Image.Image):
        return np.asarray(x if x.mode in ("L", "RGB") else x.convert("RGB"))
    x_CHW = np.asarray(x, dtype=np.float32)
    if x_CHW.ndim != 3 or x_CHW.shape[0] not in (1, 3) or x_CHW.min() < 0 or x_CHW.max() > 1:
        raise UserError(f"avalanche:{name} does not give images in 0..1, but values of shape {x_CHW.shape}")
    image_HWC = np.rint(x_CHW * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC)
