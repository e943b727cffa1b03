"""docs/operations.md says what is: its command lines parse, its settings and exit codes exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from deploy import exit_codes
from deploy.cli import palimpsest
from deploy.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
# Whole lines in a block, and what stands in the text with its options.
COMMANDS = sorted(
    {line for line in PAGE.splitlines() if line.startswith("palimpsest ")}
    | set(re.findall(r"`(palimpsest [a-z-]+ --[^`]*)`", " ".join(PAGE.split())))
)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_is_one(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    command: click.Command = palimpsest
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), arguments.pop(0))
        assert found is not None, line
        command = found
    # A sentence may leave out what a call must have; what it names has to exist.
    known = {option for parameter in command.params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


def test_there_are_some() -> None:
    assert len(COMMANDS) >= 6


def test_every_exit_code_has_its_line() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE)
    told = {int(code) for row in rows for code in row.split(",")}
    assert {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)} <= told
    assert {0, 1, 2} <= told


def test_settings_are_there() -> None:
    settings = Settings()
    named = re.findall(rf"`({'|'.join(type(settings).model_fields)})\.([a-z_]+)`", PAGE)
    assert len(named) >= 5
    for section, name in named:
        assert name in type(getattr(settings, section)).model_fields, f"{section}.{name}"
