"""How blocks become commands, and that a command which fails fails its page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs import treatment
from tests.docs.command_lines import check_make, check_module, check_options, check_palimpsest
from tests.docs.page_shell import PageShell
from tests.docs.pages import Block
from tests.docs.shell_commands import Command, commands_of

SHELL = """\
# a comment alone is no command
export A=1
palimpsest learn --stream s \\
    --state runs/s   # until Ctrl-C
cat > it.yaml <<EOF
learner: {seed: 1}
EOF
for n in 1 2; do
  echo "a; b" $n 2>&1 | grep b > out.txt
done
B=2 palimpsest models --stream s || echo "exit code $?"
palimpsest predict --stream s &
"""
CONSOLE = """\
$ echo one \\
> two
one two
$ true
$ echo 17 files
3 files
"""


def block(tag: str, text: str) -> Block:
    return Block(page="page.md", line=1, tag=tag, text=text)


def command(text: str) -> Command:
    return Command(block=block("sh", text), text=text)


def test_a_shell_block_is_one_command_after_the_other() -> None:
    commands = commands_of(block("sh", SHELL))
    assert [found.calls for found in commands] == [
        [["export", "A=1"]],
        [["palimpsest", "learn", "--stream", "s", "--state", "runs/s"]],
        [["cat"]],
        [["echo", "a; b", "$n"], ["grep", "b"]],
        [["palimpsest", "models", "--stream", "s"], ["echo", "exit code $?"]],
        [["palimpsest", "predict", "--stream", "s"]],
    ]
    assert [found.in_background for found in commands] == [False, False, False, False, False, True]
    assert [treatment.stays(found) for found in commands] == [False, True, False, False, False, True]


def test_a_console_block_shows_what_is_said() -> None:
    first, second, third = commands_of(block("console", CONSOLE))
    assert (first.calls, first.shown) == ([["echo", "one", "two"]], ("one two",))
    assert (second.programs, second.shown) == (["true"], ())
    assert third.shown == ("3 files",)


@pytest.mark.parametrize("text", ["if true; then", "echo 'open", "cat <<EOF\nno end"])
def test_what_is_no_whole_command_is_said(text: str) -> None:
    with pytest.raises(AssertionError, match="no complete command"):
        commands_of(block("sh", text))


@pytest.mark.parametrize(
    "arguments",
    [
        ["lern", "--stream", "s"],
        ["learn", "--stream", "s"],
        ["learn", "--stream", "s", "--state", "d", "--untill-idle", "5"],
        ["learn", "--stream", "s", "--state", "d", "--until-idle", "soon"],
        ["dead-letters", "list"],
    ],
)
def test_a_wrong_command_line_of_ours_fails(arguments: list[str]) -> None:
    with pytest.raises(AssertionError):
        check_palimpsest(arguments)


def test_a_wrong_command_line_of_others_fails() -> None:
    check_palimpsest(["learn", "--stream", "s", "--state", "d", "--until-idle", "5"])
    check_make(["bench", "DATA_ROOT=data"])
    check_module(["benchmarks.results", "a.json"])
    with pytest.raises(AssertionError, match="no such target"):
        check_make(["benches"])
    with pytest.raises(AssertionError, match="knows no DATA_ROOF"):
        check_make(["bench", "DATA_ROOF=data"])
    with pytest.raises(AssertionError, match="argparse says"):
        check_module(["benchmarks.results", "--no-such-option"])
    with pytest.raises(AssertionError, match="is no option"):
        check_options(["learn", "--stat", "d"])


def test_a_shell_goes_on_from_command_to_command_and_says_what_failed(tmp_path: Path) -> None:
    (tmp_path / "reader").mkdir()
    with PageShell(tmp_path / "reader", tmp_path / "logs", {"PATH": os.environ["PATH"]}) as shell:
        for text in ("export A=17", "mkdir deeper", "cd deeper"):
            shell.run(command(text), text)
        assert shell.run(command(""), 'echo "$A ${PWD##*/}"') == "17 deeper\n"
        with pytest.raises(AssertionError, match=r"(?s)page.md:1: ls nowhere\nended with 2:.*nowhere"):
            shell.run(command("ls nowhere"), "ls nowhere")
        with pytest.raises(AssertionError, match="Traceback"):
            shell.run(command("x"), "echo 'Traceback (most recent call last)' || true")


def test_what_stays_and_ends_too_soon_is_said(tmp_path: Path) -> None:
    (tmp_path / "reader").mkdir()
    with PageShell(tmp_path / "reader", tmp_path / "logs", {"PATH": os.environ["PATH"]}) as shell:
        text = "sh -c 'echo not today' &"
        with pytest.raises(AssertionError, match=r"(?s)has ended:.*not today"):
            shell.begin(command(text), text)
