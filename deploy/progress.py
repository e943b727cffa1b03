"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Call it with (stage, done, total); each stage has a bar of its own."""
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    bars: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done, total=total)

        yield show


class _Lines:
    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def show(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told_at >= _SECONDS_BETWEEN_LINES or done == total:
            self._told_at = now
            click.echo(f"{stage}: {done:,} of {total:,}", err=True)
