"""What a shell offers for an option's value, where that can be known at once: no broker is asked, no state is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import click

_STATES = Path("runs")  # where our examples have them, each under its stream's name
# A shell puts what is offered onto the command line as it is: nothing in a folder's name may be an order to it.
_PLAIN = re.compile(r"[\w.-]+", re.ASCII)


def stream_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Of the learners that run here, and of the states in `runs`."""
    from deploy.running_learners import notes

    states = [folder.parent.name for folder in _STATES.glob("*/snapshots")]
    return _beginning([*(note.stream for note in notes()), *states], incomplete)


def branch_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Of the learners that run here, of the stream that was given before, if one was."""
    from deploy.running_learners import notes

    stream = context.params.get("stream")
    return _beginning(
        ["main", *(note.branch for note in notes() if note.stream == (stream or note.stream))], incomplete
    )


def names_in(choices: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Of "a|b|c:FILE" the ones that are whole: a and b."""

    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        return _beginning([name for name in choices.split("|") if ":" not in name], incomplete)

    return complete


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete) and _PLAIN.fullmatch(name)})
