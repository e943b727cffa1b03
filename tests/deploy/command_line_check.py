"""Arguments as they stand in a manifest, parsed by the real command: nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from deploy.cli import palimpsest


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """What `palimpsest ARGUMENTS` would be called with. Raises `click.UsageError` where it would not be called."""
    name, *options = arguments
    command = palimpsest.get_command(click.Context(palimpsest), name)
    if command is None:
        raise click.UsageError(f"there is no command {name}")
    with command.make_context(f"palimpsest {name}", options) as context:
        return dict(context.params)


def option(arguments: Sequence[str], name: str) -> str:
    """The value of `--name=value`, as it stands there."""
    (value,) = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"--{name}=")]
    return value
