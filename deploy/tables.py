"""Tables for a person on a terminal; plain lines of aligned columns where it goes into a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from deploy.printable import printable


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """To stdout. `right`: the columns whose values end in one line below the other."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(columns, cells, right)
        return
    widths = [max(len(line[place]) for line in [columns, *cells]) for place in range(len(columns))]
    for line in [columns, *cells]:
        shown = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        )
        click.echo("  ".join(shown).rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # no markup: class names may hold brackets
    Console().print(table)
