"""Which columns of a table are the label and the payload: one text, or numbers.

Shared by csv and jsonl, whose rows are the same once they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.user_error import UserError
from producers.array_dataset import ArrayDataset
from producers.labelled_dataset import LabelledDataset
from producers.text_dataset import TextDataset

TEXT_COLUMN = "text"  # taken for the text where --text-column names none and there is one of this name


def column_number(columns: Sequence[str], wanted: str, option: str, file: Path) -> int:
    """Where `wanted` stands, or `UserError` that lists what there is."""
    if wanted in columns:
        return columns.index(wanted)
    listed = ", ".join(repr(name) for name in columns[:12]) + (", ..." if len(columns) > 12 else "")
    raise UserError(f"{file} has no column {wanted!r} (it has {listed}); name another with {option}")


def checked_label(value: Any, where: str) -> str:
    """A class name as it travels: a string, or a whole number by its digits."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise UserError(f"{where}: the label is {value!r}, where a name or a whole number is wanted; leave the row out")
    return str(value)


def checked_text(value: Any, where: str) -> str:
    """A text that can be sent."""
    if not isinstance(value, str) or value == "":
        raise UserError(
            f"{where}: the text is {value!r}, where a string that is not empty is wanted; leave the row out"
        )
    return value


def number(value: Any, where: str, column: str) -> float:
    """A number of a numeric column."""
    try:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass  # said below, with everything else that is no number
    raise UserError(
        f"{where}: column {column!r} holds {value!r}, which is no number; is it a text? Name it with --text-column"
    )


def table_dataset(file: Path, payloads: list[Any], labels: list[str]) -> LabelledDataset:
    """Texts, or rows of numbers of one length, under the file's name."""
    if payloads and isinstance(payloads[0], str):
        return TextDataset(name=file.stem, texts=payloads, labels=labels)
    return ArrayDataset(name=file.stem, original=file.stem, x=np.array(payloads, dtype=np.float32), labels=labels)
