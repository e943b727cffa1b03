"""`npz:FILE`: arrays `x` (N, ...) and `y` (N,) of numpy.savez; each row of x travels as application/x-npy.

Rows that are images (uint8, H x W or H x W x 3) can travel as such: --encoding png. Then they can also be turned.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.user_error import UserError
from producers.array_dataset import ArrayDataset
from producers.dataset_source import DatasetOptions, DatasetSource
from producers.image_dataset import ImageDataset
from producers.labelled_dataset import LabelledDataset, classes_and_labels


class NpzSource(DatasetSource):
    forms = ("npz:FILE",)

    def open(self, head: str, argument: str, options: DatasetOptions) -> LabelledDataset:
        file = Path(argument).expanduser()
        x, y = _arrays(file)
        labels = [str(value) for value in y.tolist()]
        if "" in labels:
            raise UserError(f"{file}: y[{labels.index('')}] is the empty string, which is no label")
        if options.encoding != "png":
            return ArrayDataset(name=file.stem, original=file.stem, x=x, labels=labels)
        if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 3)):
            raise UserError(f"{file}: x is {x.dtype} of shape {x.shape}; for PNG it is uint8 (N, H, W) or (N, H, W, 3)")
        classes, numbers = classes_and_labels(labels)
        return ImageDataset(
            name=file.stem, original=file.stem, classes=classes, labels=numbers, image=x.__getitem__, encoding="png"
        )


def _arrays(file: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        with file.open("rb") as opened:  # given a name, numpy would leave a broken file open
            archive = np.load(opened, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{file} is a single array; npz:FILE wants `x` and `y`, saved by numpy.savez")
            missing = {"x", "y"} - set(archive.files)
            if missing:
                raise UserError(
                    f"{file} lacks {' and '.join(sorted(missing))}; it holds {', '.join(archive.files) or 'nothing'}"
                )
            x, y = archive["x"], archive["y"]
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror or error}); let npz:FILE name a readable file") from error
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is no .npz file of plain arrays ({reason}); save x and y by numpy.savez") from error
    if y.ndim != 1 or y.dtype.kind not in "iuU":
        raise UserError(
            f"{file}: y is {y.dtype} of shape {y.shape}; it holds whole numbers or strings, one for each row of x"
        )
    if x.dtype.kind not in "biuf" or x.ndim < 2 or len(x) != len(y):
        raise UserError(
            f"{file}: x is {x.dtype} of shape {x.shape} for {len(y)} labels; it holds numbers, a row for each"
        )
    return x, y
