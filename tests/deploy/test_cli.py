from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from consumers.commit_log import BrokerUnavailable, LearnerFenced, OutboxRefused
from consumers.record_source import LogTruncated, SourceUnavailable
from deploy import cli, commands, exit_codes
from pipeline.user_error import UserError
from tests.deploy.command_line import environment, palimpsest

HEAVY = ("torch", "mlflow", "kafka", "transformers", "torchvision", "sklearn", "river", "rich", "pydantic", "yaml")
COMMANDS = sorted(path.stem.replace("_", "-") for path in Path(commands.__path__[0]).glob("[a-z]*.py"))


def command_paths() -> list[tuple[str, ...]]:
    """("learn",), ("broker", "start"), ..."""
    paths: list[tuple[str, ...]] = []
    context = click.Context(cli.palimpsest)
    for name in COMMANDS:
        command = cli.palimpsest.get_command(context, name)
        assert command is not None
        paths.append((name,))
        if isinstance(command, click.Group):
            paths += [(name, below) for below in command.commands]
    return paths


def test_the_top_help_imports_nothing_heavy_and_lists_every_command() -> None:
    program = f"""
import sys
from deploy.cli import main
try:
    main()
finally:
    print("imported:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], env=environment(), capture_output=True, text=True, check=True
    )
    listed = done.stdout.partition("Commands:\n")[2]
    assert "imported: []" in listed
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "] == COMMANDS
    assert done.stderr == ""


def test_every_command_has_one_line_of_help() -> None:
    assert list(commands.SHORT_HELP) == COMMANDS
    for name, text in commands.SHORT_HELP.items():
        assert text.endswith("."), name
        assert len(f"  {max(COMMANDS, key=len)}  {text}") <= 80, f"{name}: the line would be broken"


def context_of(path: tuple[str, ...]) -> click.Context:
    """Of the command with this path."""
    command: click.Command = cli.palimpsest
    context = click.Context(command, info_name="palimpsest")
    for name in path:
        assert isinstance(command, click.Group)
        below = command.get_command(context, name)
        assert below is not None
        command = below
        context = click.Context(command, info_name=name, parent=context)
    return context


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_help_has_an_example_that_is_one(path: tuple[str, ...]) -> None:
    """A line of it calls this command, and every option in it is one of the command that it is given to."""
    context = context_of(path)
    text = context.get_help()
    example = text.partition("Example")[2].partition("Exit codes:")[0]
    calls = re.findall(r"palimpsest ((?:[a-z][a-z-]*)(?: [^|\n>#&]*)?)", example.replace("\\\n", " "))
    assert any(call.split()[: len(path)] == list(path) for call in calls), text
    for call in calls:
        name, *words = call.split()
        called = context_of((name,))
        if isinstance(called.command, click.Group):
            called = context_of((name, words[0]))
        known = {option for parameter in called.command.get_params(called) for option in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, call
    for option in context.command.params:
        assert isinstance(option, click.Argument) or option.opts[0].startswith("--"), "a long name"


def test_help_of_every_command_is_there_at_once_and_loads_nothing_heavy() -> None:
    """In one process after another as a user asks, the time of one after its start: what a shell waits for at each Tab
    is the same."""
    program = f"""
import sys, time
from deploy import cli
began = time.process_time()
context = cli.click.Context(cli.palimpsest, info_name="palimpsest")
slowest = 0.0
for name in cli.palimpsest.list_commands(context):
    began = time.process_time()
    command = cli.palimpsest.get_command(context, name)
    assert command.get_short_help_str(), name
    command.get_help(cli.click.Context(command, info_name=name, parent=context))
    slowest = max(slowest, time.process_time() - began)
assert slowest < 1.0, slowest
assert time.process_time() < 3.0, "all of them, with Python's own start"
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_help_of_learn_names_every_exit_code() -> None:
    text = palimpsest("learn", "--help").stdout
    codes = [exit_codes.FENCED, exit_codes.REFUSED, exit_codes.BROKERS_AWAY, exit_codes.DISK_REFUSED]
    for code in (0, UserError.exit_code, *codes):
        assert f"\n    {code}  " in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lern",), "No such command 'lern'; see `palimpsest --help`"),
        (("learn", "--strem", "d"), "No such option '--strem'"),
        (("learn", "--state", "x"), "Missing option '--stream'; see `palimpsest learn --help`"),
        (("learn", "--stream", "s", "--state", "x", "--max-records", "0"), "'--max-records'"),
        (("broker", "begin"), "see `palimpsest broker --help`"),
    ],
)
def test_a_wrong_option_is_one_line_and_code_2(arguments: tuple[str, ...], words: str) -> None:
    done = palimpsest(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("palimpsest: ")
    assert words in line


def test_no_command_at_all_shows_the_help() -> None:
    done = palimpsest()
    assert done.returncode == 2
    assert "Commands:" in done.stderr


def test_version() -> None:
    done = palimpsest("--version")
    assert (done.returncode, done.stdout) == (0, "palimpsest, version 0.1.0\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("wrong"), 2),
        (LearnerFenced("another took over"), 4),
        (LogTruncated("gone"), 5),
        (OutboxRefused("too large"), 5),
        (BrokerUnavailable("away"), 6),
        (SourceUnavailable("away"), 6),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_what_is_no_bug_is_one_line_and_a_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "configure_logs", lambda: None)
    monkeypatch.setattr(cli.palimpsest, "main", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"palimpsest: {error}" if code != 130 else "palimpsest: interrupted"


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cli, "configure_logs", lambda: None)
    monkeypatch.setattr(cli.palimpsest, "main", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    shell = f"{sys.executable} -c 'from deploy.cli import main; main()' settings | head -1"
    done = subprocess.run(["bash", "-c", shell], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "learner:\n"
    assert done.stderr == ""
