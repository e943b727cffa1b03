"""A restructuring by hand: what `palimpsest consolidate` and `palimpsest expand` do with a state, say and answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from consumers.base_snapshots import sub_modules_count
from deploy.exit_codes import DISK_REFUSED, INTERRUPTED, NOT_OFFERED, one_line
from deploy.job_lines import job_lines
from deploy.progress import stage_progress
from deploy.restructuring import choose, restructure
from deploy.settings import Settings
from deploy.stop_signals import stop_on_signals
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.trigger import Kind


def restructure_by_hand(
    context: click.Context,
    kind: Kind,
    *,
    stream: str,
    state: Path,
    base: int | None,
    unlabelled: str | None,
    settings: Settings,
) -> None:
    """Choose, do, say what came of it, and end with the exit code of that. Raises as `choose` and `restructure`."""
    chosen = choose(state, kind, stream=stream, base=base)
    click.echo(
        f"snapshot {chosen.parent.sequence}; from before the new classes: snapshot {chosen.base.sequence}; "
        f"new classes: {', '.join(chosen.new_classes) or 'none'}"
    )
    most, present = settings.learner.restructuring.most_sub_modules, sub_modules_count(chosen.parent)
    if kind is Kind.EXPANSION and present >= most:
        click.echo(
            f"warning: the network has {present} sub-modules already; above "
            f"learner.restructuring.most_sub_modules ({most}) the learner asks for a consolidation as soon as a new "
            "class has settled",
            err=True,
        )
    with ended_in_a_line(context, "offered"), stop_on_signals() as stop, stage_progress("steps") as progress:
        report = restructure(
            chosen,
            stream=stream,
            state=state,
            settings=settings,
            unlabelled=unlabelled,
            progress=progress,
            stop=stop,
        )
    if report is None:
        click.echo("stopped; the same command goes on from here", err=True)
        context.exit(INTERRUPTED)
    for line in job_lines(report):
        click.echo(line)
    if not report.judgement.accepted:
        click.echo(f"{report.job} is not offered", err=True)
        context.exit(NOT_OFFERED)
    rows = report.unlabelled_rows
    heard = f", from {rows:,} unlabelled records" if rows else ""
    click.echo(
        f"{report.job} is offered{heard}, in {report.seconds:.0f} s; the learner of this state adopts it between two "
        "batches, or when it starts"
    )


@contextmanager
def ended_in_a_line(context: click.Context, what: str) -> Iterator[None]:
    """`what` would have become of it: what a disk or a refusal ends, with the exit code of each."""
    try:
        yield
    except OSError as error:
        click.echo(f"palimpsest: {one_line(error)}; the same command goes on from what was saved", err=True)
        context.exit(DISK_REFUSED)
    except Refused as error:
        click.echo(f"palimpsest: nothing is {what}: {error}", err=True)
        context.exit(NOT_OFFERED)
