"""Tables: plain lines in a pipe, rich on a terminal, and nothing in them that a terminal would obey."""

from __future__ import annotations

import sys

import pytest

from deploy.tables import print_table

COLUMNS = ("version", "worst class")
ROWS = [("7", "cat"), ("12", "[bold]dog[/bold]\x1b[31m")]


def test_plain_lines_of_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS, right=("version",))
    assert capsys.readouterr().out.splitlines() == [
        "version  worst class",
        "      7  cat",
        "     12  [bold]dog[/bold]\\x1b[31m",
    ]
    print_table(COLUMNS, [])
    assert capsys.readouterr().out == "version  worst class\n"


def test_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(COLUMNS, ROWS, right=("version",))
    out = capsys.readouterr().out
    assert "│" in out
    assert "[bold]dog[/bold]\\x1b[31m" in out
