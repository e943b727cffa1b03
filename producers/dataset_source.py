"""The contract of a file in producers/datasets/: how one kind of data set is opened from the command line."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from producers.labelled_dataset import LabelledDataset


def default_data_root() -> Path:
    """`$PALIMPSEST_DATA`, else ./data."""
    return Path(os.environ.get("PALIMPSEST_DATA") or "data")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """What the command line says beside the data set's name; each source takes what concerns it."""

    data_root: Path = field(default_factory=default_data_root)  # where torchvision's data sets lie
    split: Literal["train", "test"] = "train"
    download: bool = False  # the only way anything is ever downloaded
    encoding: Literal["png", "npy"] | None = None  # of images; None: as the source has it
    text_column: str | None = None  # csv, jsonl
    label_column: str = "label"  # csv, jsonl
    delimiter: str | None = None  # csv; None: a tab for .tsv, else a comma
    seed: int = 0  # for sources that order their classes themselves (Avalanche)

    @property
    def canonical(self) -> str:
        """All that an item's payload or its label depends on, in JSON: not where it lies, and not the seed."""
        left_out = ("data_root", "download", "seed")
        return json.dumps({name: value for name, value in asdict(self).items() if name not in left_out}, sort_keys=True)


class DatasetSource(ABC):
    """One kind of data set. A subclass in any file of `producers/datasets/` is found by itself."""

    forms: ClassVar[tuple[str, ...]]  # what may stand after --dataset: "digits", "folder:DIR"

    @abstractmethod
    def open(self, head: str, argument: str, options: DatasetOptions) -> LabelledDataset:
        """`head` is what stands before the colon of a form and `argument` what the user put behind it, or "".

        Raises `UserError` where there is no such data set, or it cannot be used.
        """
