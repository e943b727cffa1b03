"""The command lines that a page of documentation names, and whether they are ours."""

from __future__ import annotations

import re
import shlex

import click


def commands_in(page: str) -> list[str]:
    """Whole lines in a block, and what stands in the text with its options."""
    lines = {line.strip() for line in page.splitlines() if line.strip().startswith("palimpsest ")}
    return sorted(lines | set(re.findall(r"`(palimpsest [a-z-]+[^`]*)`", " ".join(page.split()))))


def parses(program: click.Group, line: str) -> None:
    """Its command exists, and every option that it names. A sentence may leave out what a call must have."""
    arguments = shlex.split(line, comments=True)[1:]
    command: click.Command = program
    while isinstance(command, click.Group):
        assert arguments, f"{line}: a command of which there are several"
        found = command.get_command(click.Context(command), arguments.pop(0))
        assert found is not None, line
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    assert given <= known, line
