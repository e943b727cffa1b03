"""`jsonl:FILE`: one JSON object a line; a label, and a text or numbers.

The label is the field `label` or --label-column. The payload is --text-column, else a field `text` (a string), else a
field `payload` (a list of numbers, nested or not), else all other fields, which are numbers then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions, DatasetSource
from producers.labelled_dataset import LabelledDataset
from producers.table_columns import TEXT_COLUMN, checked_label, checked_text, column_number, number, table_dataset

ARRAY_FIELD = "payload"


class JsonLinesSource(DatasetSource):
    forms = ("jsonl:FILE",)

    def open(self, head: str, argument: str, options: DatasetOptions) -> LabelledDataset:
        """1. Read the lines, 2. find the fields in the first, 3. take each line apart."""
        # 1.
        file = Path(argument).expanduser()
        rows = _rows(file)
        # 2.
        fields = list(rows[0][1]) if rows else []
        text_field = options.text_column or (TEXT_COLUMN if TEXT_COLUMN in fields else None)
        if rows:
            column_number(fields, options.label_column, "--label-column", file)
            if text_field is not None:
                column_number(fields, text_field, "--text-column", file)
        numeric = [name for name in fields if name != options.label_column]
        if rows and not numeric:
            raise UserError(f"{file} has no field beside {options.label_column!r}; there is nothing to learn from")
        # 3.
        payloads: list[Any] = []
        labels: list[str] = []
        for line, row in rows:
            where = f"{file}, line {line}"
            labels.append(checked_label(row.get(options.label_column), where))
            if text_field is not None:
                payloads.append(checked_text(row.get(text_field), where))
            elif ARRAY_FIELD in fields:
                payloads.append(_array(row.get(ARRAY_FIELD), where, payloads))
            else:
                payloads.append([number(row.get(name), where, name) for name in numeric])
        return table_dataset(file, payloads, labels)


def _rows(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank."""
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line, text in enumerate(lines, start=1):
                if text.strip():
                    row = json.loads(text)
                    if not isinstance(row, dict):
                        raise UserError(f"{file}, line {line}: {type(row).__name__}, where a JSON object is wanted")
                    rows.append((line, row))
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}); let jsonl:FILE name a readable file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {line}: not JSON ({error.msg} at column {error.colno})") from error
    return rows


def _array(value: Any, where: str, earlier: list[Any]) -> Any:
    try:
        array = np.array(value)
    except ValueError:  # lists of different lengths
        array = np.empty(0)
    if not isinstance(value, list) or array.size == 0 or array.dtype.kind not in "iuf":
        raise UserError(f"{where}: {ARRAY_FIELD!r} must be a list of numbers (or of such lists of one length)")
    if earlier and np.shape(earlier[0]) != array.shape:
        raise UserError(f"{where}: {ARRAY_FIELD!r} has shape {array.shape}, where the first has {np.shape(earlier[0])}")
    return value
