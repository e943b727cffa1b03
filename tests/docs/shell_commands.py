"""A shell block as the commands that a reader pastes one after the other, and the programs that each of them calls."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.docs.pages import Block

_HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_ASSIGNMENT = re.compile(r"\w+=")
_OPERATORS = frozenset(";&|()\n")
_KEYWORDS = {"do", "done", "while", "until", "if", "then", "else", "fi", "!", "{", "}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One complete command; in a console block also what the page shows below it."""

    block: Block
    text: str
    shown: tuple[str, ...] = field(default=())

    @property
    def in_background(self) -> bool:
        return self.words[-1:] == ["&"]

    @property
    def words(self) -> list[str]:
        """As a shell splits it, operators apart; without comments and the text of here-documents."""
        return _words(_without_here_documents(self.text))

    @property
    def calls(self) -> list[list[str]]:
        """Each program it calls, with its arguments, without assignments before it and redirections behind it."""
        calls: list[list[str]] = [[]]
        for word in self.words:
            if word and set(word) <= _OPERATORS:
                calls.append([])
            elif not calls[-1] and (word in _KEYWORDS or _ASSIGNMENT.match(word)):
                continue
            else:
                calls[-1].append(word)
        # "for n in 1 2" calls nothing.
        return [_without_redirections(call) for call in calls if call and call[0] != "for"]

    @property
    def programs(self) -> list[str]:
        return [call[0] for call in self.calls if call]


def commands_of(block: Block) -> list[Command]:
    """Of an `sh` block every command; of a `console` block those behind "$ " (and "> "), with the output shown."""
    if block.tag == "console":
        return list(_typed(block))
    return [Command(block=block, text=text) for text in _complete(block.text.splitlines())]


def _typed(block: Block) -> Iterator[Command]:
    typed: list[str] = []
    shown: list[str] = []
    for line in [*block.text.splitlines(), None]:
        if line is not None and typed and not shown and line.startswith("> "):
            typed.append(line[2:])
        elif line is None or line.startswith("$ "):
            if typed:
                (text,) = _complete(typed)
                yield Command(block=block, text=text, shown=tuple(shown))
            typed, shown = ([line[2:]] if line is not None else []), []
        else:
            assert typed, f"{block.where}: a console block begins with '$ ' and a command"
            shown.append(line)


def _complete(lines: list[str]) -> Iterator[str]:
    """Lines put together until they are a command: backslashes, quotes, here-documents, loops."""
    gathered: list[str] = []
    for line in lines:
        if not gathered and (not line.strip() or line.lstrip().startswith("#")):
            continue
        gathered.append(line)
        text = "\n".join(gathered)
        if line.endswith("\\") or _open_here_document(gathered):
            continue
        if subprocess.run(["bash", "-n", "-c", text], capture_output=True, check=False).returncode == 0:
            yield text
            gathered = []
    assert not gathered, f"no complete command: {gathered}"


def _open_here_document(lines: list[str]) -> bool:
    waiting: str | None = None
    for line in lines:
        if waiting is not None:
            waiting = None if line.strip() == waiting else waiting
        elif found := _HERE_DOCUMENT.search(line):
            waiting = found[2]
    return waiting is not None


def _without_here_documents(text: str) -> str:
    kept: list[str] = []
    waiting: str | None = None
    for line in text.splitlines():
        if waiting is not None:
            waiting = None if line.strip() == waiting else waiting
            continue
        kept.append(line)
        if found := _HERE_DOCUMENT.search(line):
            waiting = found[2]
    return "\n".join(kept)


def _words(text: str) -> list[str]:
    """A new line stands for itself: in a loop it ends a command."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    return list(lexer)


def _without_redirections(call: list[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in call:
        if skip:
            skip = False
        elif word and set(word) <= set("<>&"):
            skip = True
            if kept and kept[-1].isdigit():  # the 2 of 2>&1
                kept.pop()
        else:
            kept.append(word)
    return kept
