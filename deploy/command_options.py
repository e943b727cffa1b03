"""Options that several commands have: each is the same thing wherever it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from deploy.completed_values import branch_names, stream_names

Command = TypeVar("Command", bound=Callable[..., Any])

SAMPLES_AND_EVENTS = "The stream: topics NAME.samples, NAME.events, ..."
SAMPLES_AND_UNLABELLED = "The stream: topics NAME.samples and NAME.unlabelled."
MODEL = "The stream, and its model in MLflow."
RUNNING_STATE = "Folder given to `palimpsest learn`, which may be running."

settings_option = click.option(
    "--settings", "settings_file", type=click.Path(path_type=Path), help="YAML file; see `palimpsest settings`."
)
bootstrap_servers_option = click.option(
    "--bootstrap-servers", metavar="HOST:PORT", help="A Kafka cluster; default: the embedded broker."
)


def stream_option(help: str, *, required: bool = True) -> Callable[[Command], Command]:
    """--stream NAME."""
    return click.option("--stream", required=required, metavar="NAME", shell_complete=stream_names, help=help)


def state_option(help: str, *, required: bool = True) -> Callable[[Command], Command]:
    """--state DIRECTORY, as a path."""
    return click.option("--state", required=required, type=click.Path(path_type=Path, file_okay=False), help=help)


def branch_option(help: str) -> Callable[[Command], Command]:
    """--branch NAME, `main` by default."""
    return click.option(
        "--branch", default="main", show_default=True, metavar="NAME", shell_complete=branch_names, help=help
    )
