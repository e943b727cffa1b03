"""`palimpsest report`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import settings_option, state_option


@click.command(
    epilog="""\b
Examples:
  palimpsest report --state runs/digits --out report.html
  palimpsest report --state runs/digits --baseline runs/digits-plain --snapshot 12"""
)
@state_option("Folder given to `palimpsest learn`; it is only read.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="The file to write.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="State of another learner of the same stream, to show beside.",
)
@click.option("--snapshot", metavar="N", help="SEQUENCE or GENERATION-SEQUENCE.  [default: the newest]")
@settings_option
@click.option("--bootstrap-servers", metavar="HOST:PORT", help="Where the events are; default: the embedded broker.")
def command(
    state: Path,
    out: Path,
    baseline: Path | None,
    snapshot: str | None,
    settings_file: Path | None,
    bootstrap_servers: str | None,
) -> None:
    """Write the learner's page as one HTML file: what it knew and when, beside a baseline, and what happened.

    The file needs no server and no network. A running learner is not disturbed. Without brokers the events are missing,
    and the rest is there.
    """
    from deploy.settings import load_settings

    settings = load_settings(settings_file, {"kafka.bootstrap_servers": bootstrap_servers})

    from deploy.printable import printable
    from deploy.reporting import write_report

    report = write_report(state, out, settings=settings, baseline=baseline, snapshot=snapshot)
    if report.events_problem is not None:
        click.echo(f"events are missing: {printable(report.events_problem)}", err=True)
    click.echo(
        f"{out}: stream {report.stream}, snapshot {report.generation}-{report.sequence} after {report.records:,} "
        f"records; {report.evaluations:,} evaluations of {report.classes:,} classes, {report.events:,} events"
    )
