"""Command lines against the programs themselves, without running them: options, values, targets, files."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
from collections.abc import Sequence
from unittest import mock

import click

from deploy.cli import palimpsest
from tests.docs.pages import ROOT

_MAKE_VALUE = re.compile(r"(\w+)=")


def check_palimpsest(arguments: Sequence[str]) -> None:
    """Raises `AssertionError` where `palimpsest` would not take it: also a value, and what has to be given."""
    command, rest = _command(arguments)
    try:
        command.make_context(command.name, list(rest), parent=click.Context(palimpsest, info_name="palimpsest"))
    except click.exceptions.Exit:
        pass  # --help
    except click.ClickException as error:
        raise AssertionError(f"palimpsest {' '.join(arguments)}: {error.format_message()}") from error


def check_options(arguments: Sequence[str]) -> None:
    """The same of a command as a sentence has it, which may leave out what must be given: every option is one."""
    command, rest = _command(arguments)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = {word.split("=")[0] for word in rest if word.startswith("--")} - known - {"--help"}
    assert not unknown, f"palimpsest {' '.join(arguments)}: {unknown} is no option"


def _command(arguments: Sequence[str]) -> tuple[click.Command, Sequence[str]]:
    command: click.Command = palimpsest
    rest = list(arguments)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"palimpsest {' '.join(arguments)}: there is no command {rest[0]}"
        command = found
        rest.pop(0)
    return command, rest


class _Parsed(Exception):
    """How argparse ended: 0 where it took the command line."""


def check_module(arguments: Sequence[str]) -> None:
    """`python -m MODULE ...` of ours, whose `main` takes a command line by argparse."""
    module, *rest = arguments
    real = argparse.ArgumentParser.parse_args
    codes: list[object] = []

    def parse_only(parser: argparse.ArgumentParser, *_: object, **__: object) -> argparse.Namespace:
        try:
            real(parser, rest)
            codes.append(0)
        except SystemExit as end:
            codes.append(end.code or 0)
        raise _Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_only), contextlib.suppress(_Parsed):
        importlib.import_module(module).main()
    assert codes == [0], f"python -m {' '.join(arguments)}: argparse says {codes}"


def check_make(arguments: Sequence[str]) -> None:
    """Targets and variables of our Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    variables = set(re.findall(r"\$\((?:or \$\()?([A-Z_]+)\)", text)) | {"PALIMPSEST_TEST_ALL"}
    for argument in arguments:
        value = _MAKE_VALUE.match(argument)
        if value:
            assert value[1] in variables, f"make {argument}: the Makefile knows no {value[1]}"
        else:
            assert argument in targets, f"make {argument}: there is no such target"


def check_files(arguments: Sequence[str]) -> None:
    """Files of ours that another program is given (`docker compose -f compose.yaml`) are there."""
    for argument in arguments:
        name = argument.split("=")[-1].removeprefix("./")
        if name.startswith(("deploy/", "docs/", "tests/", "benchmarks/")) or name == "compose.yaml":
            assert (ROOT / name).exists(), f"{argument} is not in the repository"
