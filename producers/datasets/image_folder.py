"""`folder:DIR`: a folder a class, with JPEG or PNG files in it, sent as they are.

Where DIR holds a folder named as the split (`train`, `test`), that one is meant. Files are read when their turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.codec.image import encode_jpeg, encode_png
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions, DatasetSource
from producers.image_alteration import altered, channels_first
from producers.labelled_dataset import LabelledDataset, in_order

CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
SIGNATURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}
SPLITS = ("train", "test")


class FolderSource(DatasetSource):
    forms = ("folder:DIR",)

    def open(self, head: str, argument: str, options: DatasetOptions) -> LabelledDataset:
        if options.encoding == "npy":
            raise UserError("folder:DIR sends its files as they are; leave --encoding npy out")
        root = Path(argument).expanduser()
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; folder:DIR wants one with a folder for each class")
        name = root.resolve().name
        if (root / options.split).is_dir():
            root, original = root / options.split, f"{name}/{options.split}"
        elif name in SPLITS:
            name, original = root.resolve().parent.name, f"{root.resolve().parent.name}/{name}"
        elif options.split != "train":
            raise UserError(f"{root} has no folder {options.split!r}; leave --split out or name the folder itself")
        else:
            original = name
        classes = in_order(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not classes:
            raise UserError(
                f"{root} holds no folders; folder:DIR wants one for each class, with .jpg or .png files in it"
            )
        files: list[Path] = []
        labels: list[int] = []
        for label, class_name in enumerate(classes):
            found = sorted(file for file in (root / class_name).rglob("*") if file.suffix.lower() in CONTENT_TYPES)
            if not found:
                raise UserError(f"class folder {root / class_name} holds no .jpg or .png file; fill it or take it away")
            files += found
            labels += [label] * len(found)
        return ImageFolder(
            name=name or "folder", original=original, root=root, classes=tuple(classes), files=files, labels=labels
        )


class ImageFolder(LabelledDataset):
    """Files of images. An image that was changed is written again in the format it came in."""

    can_turn = True

    def __init__(
        self,
        *,
        name: str,
        original: str,
        root: Path,
        classes: tuple[str, ...],
        files: Sequence[Path],
        labels: Sequence[int],
    ) -> None:
        self.name = name
        self.classes = classes
        self.labels = np.array(labels, dtype=np.int64)
        self._original = original
        self._root = root
        self._files = files

    def payload(self, i: int) -> tuple[bytes, str]:
        file = self._files[i]
        try:
            value = file.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {file} ({error.strerror}); was it moved while it was being sent?") from error
        return value, _content_type(value, file)

    def augmented_payload(
        self, i: int, generator: np.random.Generator | None, turn_degrees: float = 0.0
    ) -> tuple[bytes, str]:
        value, content_type = self.payload(i)
        changed_HWC = altered(_pixels(value, self._files[i]), generator, turn_degrees)
        if content_type == "image/png":
            return encode_png(channels_first(changed_HWC)), content_type
        return encode_jpeg(channels_first(changed_HWC)), content_type

    def subject(self, i: int) -> str:
        return f"{self._original}/{self._files[i].relative_to(self._root).as_posix()}"


def _content_type(value: bytes, file: Path) -> str:
    """By what the file begins with: names are often wrong. A broken file goes by its name, and to dead letters."""
    for signature, content_type in SIGNATURES.items():
        if value.startswith(signature):
            return content_type
    return CONTENT_TYPES[file.suffix.lower()]


def _pixels(value: bytes, file: Path) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(BytesIO(value)) as image:
            return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    except Exception as error:  # on malformed bytes Pillow's parsers raise almost anything
        raise UserError(f"{file} cannot be shifted and turned ({error}); it is no image, take it away") from error
