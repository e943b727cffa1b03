"""`mnist`, `fashion-mnist`, `cifar10` and `torchvision:NAME`: torchvision's labelled image sets, from files at hand.

Nothing is downloaded but with `--download`. Sets that torchvision keeps in memory are sent from there, the others are
read item by item.

Legend: N items, C channels, H height, W width
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions, DatasetSource
from producers.image_dataset import ImageDataset
from producers.labelled_dataset import LabelledDataset

SHORT_NAMES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
# Where the files belong below the data root, for those most asked for; torchvision's documentation has the others.
FOLDERS = {
    "MNIST": "MNIST/raw",
    "FashionMNIST": "FashionMNIST/raw",
    "KMNIST": "KMNIST/raw",
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
}
# Where torchvision wants one of several ways to cut the set, and has no default.
SPLITS = {"EMNIST": "balanced"}
LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")


class TorchvisionSource(DatasetSource):
    forms = ("mnist", "fashion-mnist", "cifar10", "torchvision:NAME")

    def open(self, head: str, argument: str, options: DatasetOptions) -> LabelledDataset:
        """1. Find the class, 2. open the files, 3. the labels, 4. the images."""
        # 1.
        class_name = SHORT_NAMES.get(head, argument)
        # 2.
        dataset = open_torchvision(class_name, options)
        # 3.
        labels = _labels(dataset, class_name)
        # 4.
        name = next((short for short, long in SHORT_NAMES.items() if long == class_name), class_name.lower())
        return ImageDataset(
            name=name,
            original=f"{name}/{options.split}",
            classes=_class_names(dataset, labels),
            labels=labels,
            image=_images(dataset),
            encoding=options.encoding or "png",
        )


def open_torchvision(class_name: str, options: DatasetOptions) -> Any:
    """The torchvision data set itself, or `UserError` that says where its files belong."""
    import torchvision.datasets as library

    kind: Any = getattr(library, class_name, None) if class_name in library.__all__ else None
    if not (inspect.isclass(kind) and issubclass(kind, library.VisionDataset)) or kind is library.VisionDataset:
        raise UserError(
            f"torchvision has no data set {class_name!r}; it is one of torchvision.datasets, such as torchvision:SVHN"
        )
    root = options.data_root.expanduser()
    files = root / FOLDERS.get(class_name, "")
    arguments = {"root": str(root)} | _arguments(kind, class_name, options)
    constructor: Any = kind
    try:
        return constructor(**arguments)
    except TypeError as error:
        raise UserError(
            f"torchvision:{class_name} cannot be opened by its name alone ({error}); use folder:DIR"
        ) from error
    except ImportError as error:
        raise UserError(f"torchvision:{class_name} needs a package that is missing: {error}") from error
    except Exception as error:  # on files that are missing or broken the readers raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        if options.download:
            raise UserError(f"torchvision:{class_name} could not be downloaded to {root}: {reason}") from error
        raise UserError(
            f"torchvision:{class_name} is not in {files} ({reason}); put its files there, name another --data-root, "
            "or let --download fetch it"
        ) from error


def _arguments(kind: Any, class_name: str, options: DatasetOptions) -> dict[str, Any]:
    """torchvision's constructors differ: `train`, or `split`, or neither; some pass more on to their base."""
    accepted: dict[str, inspect.Parameter] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in vars(base):
            accepted |= inspect.signature(base.__init__).parameters
    arguments: dict[str, Any] = {}
    if "download" in accepted:
        arguments["download"] = options.download  # some download by default
    elif options.download:
        raise UserError(f"torchvision:{class_name} cannot download itself; put its files into {options.data_root}")
    if "split" in accepted:
        default = accepted["split"].default
        usual = SPLITS.get(class_name, default if isinstance(default, str) else "train")
        arguments["split"] = usual if options.split == "train" or class_name in SPLITS else "test"
    if "train" in accepted:
        arguments["train"] = options.split == "train"
    if options.split == "test" and not arguments.keys() & {"train", "split"}:
        raise UserError(f"torchvision:{class_name} has no test split; leave --split out")
    return arguments


def _labels(dataset: Any, class_name: str) -> npt.NDArray[np.int64]:
    for attribute in LABEL_ATTRIBUTES:
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            break
    else:
        values = [dataset[i][1] for i in range(len(dataset))]
    try:
        labels = np.asarray(values)
    except ValueError:
        labels = np.empty(0)
    if labels.ndim == 2 and class_name == "QMNIST":  # the digit stands first, then who wrote it and where
        labels = labels[:, 0]
    if labels.shape != (len(dataset),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"torchvision:{class_name} does not give each image one class; use a data set for classification"
        )
    return labels.astype(np.int64)


def _class_names(dataset: Any, labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """The data set's own names, or the numbers."""
    listed = getattr(dataset, "classes", None)
    if not isinstance(listed, (list, tuple)) or len(listed) <= int(labels.max(initial=0)):
        return tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1))
    names = tuple(str(entry[0] if isinstance(entry, tuple) else entry) for entry in listed)  # ImageNet: synonyms
    digits = [re.fullmatch(r"(\d) - .*", name) for name in names]  # MNIST: "0 - zero"
    return tuple(match[1] for match in digits if match) if all(digits) else names


def _images(dataset: Any) -> Any:
    """i -> uint8 (H, W) or (H, W, 3)."""
    data: Any = getattr(dataset, "data", None)
    if hasattr(data, "numpy"):
        data = data.numpy()
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and len(data) == len(dataset):
        if data.ndim == 4 and data.shape[1] == 3 and data.shape[3] != 3:  # SVHN, STL10
            data = data.transpose(0, 2, 3, 1)
        if data.ndim == 3 or (data.ndim == 4 and data.shape[3] == 3):
            return data.__getitem__

    def image(i: int) -> npt.NDArray[np.uint8]:
        picture = dataset[i][0]
        return np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))

    return image
