"""`palimpsest consolidate`"""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Example:
  palimpsest consolidate --stream digits --state runs/digits

\b
Exit codes:
  0  offered: the state's learner adopts it
  2  something you can put right: an option, a setting, a topic, a folder
  3  nothing was offered: the job was refused, or its result is worse than what there is
  5  the log lost what was to be read
  6  the brokers are away: start it again later
  7  the disk takes nothing
  130  interrupted; the same command goes on where it stopped"""
)
@click.option("--stream", required=True, metavar="NAME", help="The stream: topics NAME.samples and NAME.unlabelled.")
@click.option(
    "--state",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder given to `palimpsest learn`, which may be running.",
)
@click.option(
    "--base", type=int, metavar="SEQUENCE", help="The old teacher's snapshot; default: before the newest classes."
)
@click.option("--unlabelled", metavar="TOPIC", help="Another topic of records without labels.")
@click.option("--epochs", type=int, help="Passes of the student over the unlabelled records.")
@click.option("--batch-size", type=int, help="Records of one step.")
@click.option("--lr", "learning_rate", type=float, help="Largest step size.")
@click.option(
    "--settings", "settings_file", type=click.Path(path_type=Path), help="YAML file; see `palimpsest settings`."
)
@click.option("--bootstrap-servers", metavar="HOST:PORT", help="A Kafka cluster; default: the embedded broker.")
@click.pass_context
def command(
    context: click.Context,
    stream: str,
    state: Path,
    base: int | None,
    unlabelled: str | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    settings_file: Path | None,
    bootstrap_servers: str | None,
) -> None:
    """Distil what was known before the newest classes, and these, into one compact network (DMC, Zhang et al. 2020).

    It works beside a running learner, from its snapshots and the log. What comes of it is offered where on the
    hold-outs it is no worse; the learner adopts it between two batches and learns once more what came since.
    """
    from deploy.exit_codes import DISK_REFUSED, INTERRUPTED, NOT_OFFERED, one_line
    from deploy.settings import load_settings

    settings = load_settings(
        settings_file,
        {
            "kafka.bootstrap_servers": bootstrap_servers,
            "consolidation.epochs": epochs,
            "consolidation.batch_size": batch_size,
            "consolidation.learning_rate": learning_rate,
        },
    )

    from deploy.consolidating import choose, consolidate
    from deploy.progress import stage_progress
    from deploy.stop_signals import stop_on_signals
    from pipeline.restructuring.refused import Refused

    chosen = choose(state, stream=stream, base=base)
    click.echo(
        f"snapshot {chosen.parent.sequence}; old teacher from snapshot {chosen.base.sequence}; new classes: "
        f"{', '.join(chosen.new_classes) or 'none'}"
    )
    try:
        with stop_on_signals() as stop, stage_progress() as progress:
            report = consolidate(
                chosen,
                stream=stream,
                state=state,
                settings=settings,
                unlabelled=unlabelled,
                progress=progress,
                stop=stop,
            )
    except OSError as error:
        click.echo(f"palimpsest: {one_line(error)}; the same command goes on from what was saved", err=True)
        context.exit(DISK_REFUSED)
    except Refused as error:
        click.echo(f"palimpsest: nothing is offered: {error}", err=True)
        context.exit(NOT_OFFERED)
    if report is None:
        click.echo("stopped; the same command goes on from here", err=True)
        context.exit(INTERRUPTED)
    for line in report.judgement.reasons:
        click.echo(line)
    if report.from_reservoir:
        click.echo("the log no longer holds the new classes' first records: the specialist learnt from the reservoir's")
    if not report.judgement.accepted:
        click.echo(f"{report.job} is not offered", err=True)
        context.exit(NOT_OFFERED)
    click.echo(
        f"{report.job} is offered, from {report.unlabelled_rows:,} unlabelled records in {report.seconds:.0f} s; the "
        "learner of this state adopts it between two batches, or when it starts"
    )
