"""The data and the steps of `benchmarks.expansion`: labelled rows, rows without labels, and a test part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.streams.benchmark_stream import decoded
from benchmarks.streams.split_cifar10 import cifar10_part
from pipeline import keyed_randomness
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.restructuring.labelled_rows import LabelledRows
from pipeline.sample import InputSpec
from pipeline.settings import AugmentationSettings
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.labelled_dataset import LabelledDataset

Rows = npt.NDArray[np.generic]
Part = Literal["train", "test"]
LABELLED_ONLY: Mapping[str, Any] = {"mixmatch_weight": 0.0, "pseudo_weight": 0.0}
_OF_ALL_CLASSES: Mapping[str, Any] = {"align_guesses": True}  # the unlabelled rows are of every class equally often
_COLOUR = {"input": {"shape": [3, 32, 32]}}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Rows of one data set and seed, by class."""

    steps: tuple[tuple[str, ...], ...]  # the classes that come in each
    labelled: Mapping[str, Rows]
    unlabelled: Rows  # of all classes, also those that have not come yet
    test: Mapping[str, Rows]
    spec: InputSpec
    backbone: Mapping[str, Any]  # `NetworkSettings` of the single network
    augmentation: AugmentationSettings
    rehearsal: int  # samples kept, of all classes seen so far
    expansion: Mapping[str, Any]  # settings over the defaults
    beginning: Mapping[str, Any]  # of the first step instead

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they come."""
        return tuple(name for step in self.steps for name in step)

    def seen(self, step: int) -> tuple[str, ...]:
        """The classes of the steps up to this one."""
        return tuple(name for classes in self.steps[: step + 1] for name in classes)

    def rows(self, names: Sequence[str]) -> LabelledRows:
        """The labelled rows of these classes."""
        return _labelled(self.labelled, names)

    def test_rows(self, names: Sequence[str]) -> LabelledRows:
        return _labelled(self.test, names)

    def memory(self, names: Sequence[str]) -> LabelledRows:
        """What is kept of these classes, as many rows of each. The rows' order was drawn by the seed."""
        each = self.rehearsal // max(1, len(names))
        return _labelled({name: x[:each] for name, x in self.labelled.items()}, names)


def _labelled(rows: Mapping[str, Rows], names: Sequence[str]) -> LabelledRows:
    labels = tuple(name for name in names for _ in range(len(rows[name])))
    empty = next(iter(rows.values()))[:0]
    return LabelledRows(x=np.concatenate([empty, *(rows[name] for name in names)]), labels=labels)


def steps_of(names: Sequence[str], scenario: str) -> tuple[tuple[str, ...], ...]:
    """`s50-t5`: half of the classes first, then the others in five equal steps; `s0-t5`: all in five equal steps.

    Raises `UserError` where the classes do not divide so.
    """
    first, _, steps = scenario.removeprefix("s").partition("-t")
    try:
        begin, count = len(names) * int(first) // 100, int(steps)
    except ValueError as error:
        raise UserError(f"no steps {scenario!r}: such as s50-t5 (half first, then five steps) or s0-t10") from error
    rest = len(names) - begin
    if count < 1 or rest < 1 or rest % count:
        raise UserError(f"{scenario} wants {count} equal steps of {rest} classes: choose other steps for this data set")
    each = rest // count
    beginnings = range(begin, len(names), each)
    return (*([tuple(names[:begin])] if begin else []), *(tuple(names[at : at + each]) for at in beginnings))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set, as a problem is made of it."""

    parts: Callable[[Path], Sequence[Callable[[Path, Part], tuple[Rows, Sequence[str]]]]]
    backbone: Mapping[str, Any]
    augmentation: AugmentationSettings
    rehearsal: Callable[[int], int]  # of so many classes
    beginning: Mapping[str, Any] = field(default_factory=lambda: {"prune": 0.3, **LABELLED_ONLY})
    size_power: int = 2  # a network's parameters go with this power of the share of channels that it keeps
    is_sequence: bool = False  # a step is a data set


MOST_PARAMETERS = 1.5  # of the single network's


def prune_for(source: Source, additions: int) -> float:
    """The share of channels that each of so many additions loses, so that all of it comes to about `MOST_PARAMETERS`;
    not less than the default."""
    first = (1 - (source.beginning["prune"] or 0)) ** source.size_power
    each = (MOST_PARAMETERS - first) / max(1, additions)
    default = ExpansionSettings().prune
    assert default is not None
    return max(default, math.floor(100 * (1 - math.pow(each, 1 / source.size_power))) / 100)


def problem_of(name: str, scenario: str, data_root: Path, seed: int, *, per_class: tuple[int, int, int]) -> Problem:
    """`per_class`: labelled, unlabelled and test rows. Raises `UserError` where the data is not there."""
    source = SOURCES[name]
    rows: dict[Part, dict[str, Rows]] = {"train": {}, "test": {}}
    steps: list[tuple[str, ...]] = []
    for part in source.parts(data_root):
        for split, of_classes in rows.items():
            x, labels = part(data_root, split)
            of_row = np.array(labels)
            of_classes |= {label: x[of_row == label] for label in sorted(set(labels))}
            steps += [tuple(sorted(set(labels)))] * (split == "train")
    labelled_each, unlabelled_each, test_each = per_class
    generator = keyed_randomness.generator(seed, "benchmark/expansion")
    train = {label: x[generator.permutation(len(x))] for label, x in rows["train"].items()}
    test = {label: x[generator.permutation(len(x))[:test_each]] for label, x in rows["test"].items()}
    names = [label for step in steps for label in step]
    steps = steps if source.is_sequence else list(steps_of(names, scenario))
    first = next(iter(train.values()))
    return Problem(
        steps=tuple(steps),
        labelled={label: x[:labelled_each] for label, x in train.items()},
        unlabelled=np.concatenate([x[labelled_each : labelled_each + unlabelled_each] for x in train.values()]),
        test=test,
        spec=InputSpec(kind="image", shape=tuple(first.shape[1:])),
        backbone=source.backbone,
        augmentation=source.augmentation,
        rehearsal=source.rehearsal(len(names)),
        expansion={**_OF_ALL_CLASSES, "prune": prune_for(source, len(steps) - 1)},
        beginning=source.beginning,
    )


@cache
def _mnist(data_root: Path, split: Part) -> tuple[Rows, Sequence[str]]:
    return _read(open_dataset("mnist", DatasetOptions(data_root=data_root, split=split)), {})


@cache
def _colour_mnist(data_root: Path, split: Part) -> tuple[Rows, Sequence[str]]:
    """As the others of the sequence: three channels, 32 x 32."""
    x, labels = _read(open_dataset("mnist", DatasetOptions(data_root=data_root, split=split)), _COLOUR)
    return x, [f"mnist {label}" for label in labels]


@cache
def _svhn(data_root: Path, split: Part) -> tuple[Rows, Sequence[str]]:
    x, labels = _read(open_dataset("torchvision:SVHN", DatasetOptions(data_root=data_root, split=split)), _COLOUR)
    return x, [f"svhn {label}" for label in labels]


@cache
def _cifar10(data_root: Path, split: Part) -> tuple[Rows, Sequence[str]]:
    return _read(cifar10_part(data_root, split), {})


@cache
def _cifar100(data_root: Path, split: Part) -> tuple[Rows, Sequence[str]]:
    return _read(open_dataset("torchvision:CIFAR100", DatasetOptions(data_root=data_root, split=split)), {})


def _read(part: LabelledDataset, settings: Mapping[str, Any]) -> tuple[Rows, Sequence[str]]:
    x = decoded([part.payload(item) for item in range(len(part))], settings)
    return x, [part.classes[int(label)] for label in part.labels]


def _sequence(data_root: Path) -> list[Callable[[Path, Part], tuple[Rows, Sequence[str]]]]:
    """MNIST, SVHN where its files are at hand, CIFAR-10."""
    has_svhn = (data_root / "train_32x32.mat").is_file() and (data_root / "test_32x32.mat").is_file()
    return [_colour_mnist, *([_svhn] if has_svhn else []), _cifar10]


_NARROW = {"backbone": "resnet18", "options": {"width": 16}}
_CROPS_AND_FLIPS = AugmentationSettings(crop_padding=4, horizontal_flip=True)

SOURCES: Mapping[str, Source] = {
    "cifar10": Source(
        parts=lambda _: [_cifar10],
        backbone=_NARROW,
        augmentation=_CROPS_AND_FLIPS,
        rehearsal=lambda _: 200,
        beginning={"prune": None, **LABELLED_ONLY},
    ),
    "cifar100": Source(
        parts=lambda _: [_cifar100],
        backbone={"backbone": "resnet18"},
        augmentation=_CROPS_AND_FLIPS,
        rehearsal=lambda _: 2000,
    ),
    "mnist": Source(
        parts=lambda _: [_mnist],
        backbone={"backbone": "mlp"},
        augmentation=AugmentationSettings(crop_padding=2),
        rehearsal=lambda _: 200,
        beginning={"prune": 0.5, **LABELLED_ONLY},
        size_power=1,  # nearly all of a perceptron's weights lie in its first layer
    ),
    "sequence": Source(
        parts=_sequence,
        backbone=_NARROW,
        augmentation=AugmentationSettings(crop_padding=4),  # a mirrored digit is none
        rehearsal=lambda classes: 5 * classes,
        is_sequence=True,
    ),
}
