"""`csv:FILE`: one row an item; a label, and a text or numbers.

The first line names the columns. A file without such a line: give --label-column (and --text-column) as numbers, from 1
on. The label is the column `label`; the text is --text-column or a column `text`; without either, all other columns are
numbers and travel as one array. Files that end in .tsv are cut at tabs, without quoting.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions, DatasetSource
from producers.labelled_dataset import LabelledDataset
from producers.table_columns import TEXT_COLUMN, checked_label, checked_text, column_number, number, table_dataset


class CsvSource(DatasetSource):
    forms = ("csv:FILE",)

    def open(self, head: str, argument: str, options: DatasetOptions) -> LabelledDataset:
        """1. Read the rows, 2. find the columns, 3. take each row apart."""
        # 1.
        file = Path(argument).expanduser()
        rows = _rows(file, options.delimiter or ("\t" if file.suffix.lower() == ".tsv" else ","))
        # 2.
        wanted = [options.label_column, *([options.text_column] if options.text_column is not None else [])]
        if not rows:
            raise UserError(f"{file} holds no line; csv:FILE wants one that names the columns, and rows")
        if all(name.isdecimal() for name in wanted) and not set(wanted) <= set(rows[0][1]):
            columns = [str(position) for position in range(1, len(rows[0][1]) + 1)]
        else:
            columns = rows.pop(0)[1]
        label_at = column_number(columns, options.label_column, "--label-column", file)
        text_column = options.text_column or (TEXT_COLUMN if TEXT_COLUMN in columns else None)
        text_at = None if text_column is None else column_number(columns, text_column, "--text-column", file)
        if text_at is None and len(columns) == 1:
            raise UserError(f"{file} has no column beside {options.label_column!r}; there is nothing to learn from")
        # 3.
        payloads: list[Any] = []
        labels: list[str] = []
        for line, row in rows:
            where = f"{file}, line {line}"
            if len(row) != len(columns):
                raise UserError(
                    f"{where}: {len(row)} columns, where the first line has {len(columns)}; see --delimiter"
                )
            labels.append(checked_label(row[label_at], where))
            if text_at is not None:
                payloads.append(checked_text(row[text_at], where))
            else:
                payloads.append([number(row[at], where, columns[at]) for at in range(len(columns)) if at != label_at])
        return table_dataset(file, payloads, labels)


def _rows(file: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line number, fields) of every row that is not blank."""
    if len(delimiter) != 1:
        raise UserError(f"a delimiter is one character; got {delimiter!r}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            # In tab-separated files a quote is a character like any other: headlines open some that they never close.
            quoting: Any = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
            reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
            return [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}); let csv:FILE name a readable file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from error
    except csv.Error as error:
        raise UserError(f"{file} is not CSV cut at {delimiter!r}: {error}") from error
