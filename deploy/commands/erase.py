"""`palimpsest erase`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.command_options import bootstrap_servers_option, branch_option, settings_option, state_option, stream_option

if TYPE_CHECKING:
    from consumers.erasure import ErasureReport


@click.command(
    epilog="""\b
Example:
  palimpsest erase --stream faces --state runs/faces --subject customer-4711"""
)
@stream_option("The stream that the state was learnt from.")
@state_option("Folder given to `palimpsest learn`.")
@click.option("--subject", required=True, metavar="ID", help="The ce_subject of the records to forget.")
@branch_option("The branch that learnt the state.")
@click.option(
    "--unknown-too",
    is_flag=True,
    help="Also remove rows that an older release stored without noting whose they are.",
)
@settings_option
@bootstrap_servers_option
@click.pass_context
def command(
    context: click.Context,
    stream: str,
    state: Path,
    subject: str,
    branch: str,
    unknown_too: bool,
    settings_file: Path | None,
    bootstrap_servers: str | None,
) -> None:
    """Remove a subject's raw samples from a state: reservoir, hold-outs, waiting dead letters, in every snapshot.

    Stop the state's learner first. A later learner skips the subject's records that lie in the log by now. What the
    network learnt stays in its weights. Run it for each --state; run it again where it was interrupted.

    Exit codes: 0 done, 2 something you can put right, 4 a learner has taken over meanwhile, 5 the brokers refuse for
    good, 6 the brokers are away, 7 the disk takes no snapshot.
    """
    from deploy.exit_codes import DISK_REFUSED, one_line
    from deploy.settings import load_settings
    from pipeline.user_error import UserError

    if not subject:
        raise UserError("--subject is empty: give the ce_subject of the records to forget")
    settings = load_settings(settings_file, {"kafka.bootstrap_servers": bootstrap_servers})

    from deploy.erasing import erase

    try:
        report = erase(
            stream=stream, state=state, subject=subject, branch=branch, unknown_too=unknown_too, settings=settings
        )
    except OSError as error:
        click.echo(f"palimpsest: {one_line(error)}; run it again", err=True)
        context.exit(DISK_REFUSED)
    for line in _lines(report, stream):
        click.echo(line)


def _lines(report: ErasureReport, stream: str) -> list[str]:
    ends = ", ".join(f"{partition} offset {offset:,}" for partition, offset in sorted(report.until.items()))
    return [
        f"newest state: {_count(report.newest_reservoir_rows, 'row')} of the reservoir and "
        f"{_count(report.newest_held_out_samples, 'held-out sample')} removed",
        f"{_count(report.snapshots_rewritten, 'snapshot')} rewritten: {_count(report.reservoir_rows, 'row')}, "
        f"{_count(report.held_out_samples, 'held-out sample')} and {_count(report.dead_letters, 'dead letter')} "
        f"removed; {_count(report.snapshots_removed, 'broken snapshot')} removed",
        f"snapshot {report.sequence} is the newest; records of the subject before {ends} are skipped from now on",
        f"not reached: {stream}.samples and {stream}.dead-letters (let retention delete the records, or "
        "kafka-delete-records.sh), states of other branches (erase there too), copies of this one, and what the "
        "network has learnt; versions in MLflow hold no raw samples",
    ]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
