"""Shows what learners answered: once, or again every second until somebody has seen enough."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import click
from rich.console import Console
from rich.text import Text

from consumers.status_answer import StatusAnswer
from deploy.asking_learners import Found
from deploy.bottom_lines import BottomLines
from deploy.live_status import is_drawn_on
from deploy.status_table import nobody_answers, status_lines

_SECONDS_BETWEEN_LOOKS = 1.0


def show(answers: Sequence[StatusAnswer], *, as_json: bool) -> None:
    """To stdout: a table each, or a JSON object a line."""
    if as_json:
        for answer in answers:
            click.echo(answer.model_dump_json())
        return
    lines = status_lines(answers)
    if sys.stdout.isatty():
        Console().print(*lines, sep="\n", soft_wrap=True)
    else:
        click.echo("\n".join(line.plain.rstrip() for line in lines))


def watch(find: Callable[[], Found], *, stream: str | None, branch: str | None, as_json: bool) -> None:
    """Until Ctrl-C: drawn over on a terminal, else one after the other. A learner that is away may come back."""
    try:
        if as_json or not is_drawn_on(sys.stdout):
            _say(find, stream, branch, as_json=as_json)
        else:
            _draw(find, stream, branch)
    except KeyboardInterrupt:
        return


def _say(find: Callable[[], Found], stream: str | None, branch: str | None, *, as_json: bool) -> None:
    missed = ""
    while True:
        found = find()
        show(found.answers, as_json=as_json)
        nobody = "" if found.answers else nobody_answers(stream, branch, found.tried)
        if nobody and nobody != missed:  # once, not every second
            click.echo(f"palimpsest: {nobody}", err=True)
        missed = nobody
        sys.stdout.flush()
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _draw(find: Callable[[], Found], stream: str | None, branch: str | None) -> None:
    found = find()

    def lines(room: int) -> list[Text]:
        if found.answers:
            return status_lines(found.answers, room)
        wrapped = Text(nobody_answers(stream, branch, found.tried), style="yellow")
        return list(wrapped.wrap(console, room))

    console = Console()
    with BottomLines(console, lines, stays=True) as bottom:
        while True:
            bottom.draw()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            found = find()
