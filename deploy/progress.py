"""Progress of long work, on stderr: a bar on a terminal, a plain line now and then elsewhere; rate and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

_SECONDS_BETWEEN_LINES = 3.0


@contextmanager
def stage_progress(unit: str = "records") -> Iterator[Callable[[str, int, int], None]]:
    """Call it with (stage, units done, units in all); each stage has a bar, or lines, of its own."""
    if not sys.stderr.isatty():
        yield _Lines(unit).show
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    bars: dict[str, TaskID] = {}
    rates: dict[str, _Rate] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total, rate=0.0)
                rates[stage] = _Rate(done)
            progress.update(bars[stage], completed=done, total=total, rate=rates[stage].per_second(done))

        yield show


class _Rate:
    """Units per second since a stage was first heard of."""

    def __init__(self, done: int) -> None:
        self._done = done
        self._since = time.monotonic()

    def per_second(self, done: int) -> float:
        seconds = time.monotonic() - self._since
        return (done - self._done) / seconds if seconds > 0 else 0.0


class _Lines:
    """A line every few seconds; the last one only of a stage that was long enough for one before."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._told_at: dict[str, float] = {}
        self._rates: dict[str, _Rate] = {}
        self._told: set[str] = set()

    def show(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage not in self._rates:
            self._rates[stage] = _Rate(done)
            self._told_at[stage] = now
        is_last = done == total and stage in self._told
        if now - self._told_at[stage] < _SECONDS_BETWEEN_LINES and not is_last:
            return
        self._told_at[stage] = now
        self._told.add(stage)
        rate = self._rates[stage].per_second(done)
        left = f", {(total - done) / rate:,.0f} s left" if rate > 0 else ""
        click.echo(f"{stage}: {done:,} of {total:,} {self._unit}, {rate:,.0f}/s{left}", err=True)
