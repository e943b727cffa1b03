"""`palimpsest expand`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import (
    RUNNING_STATE,
    SAMPLES_AND_UNLABELLED,
    bootstrap_servers_option,
    settings_option,
    state_option,
    stream_option,
)


@click.command(
    epilog="""\b
Example:
  palimpsest expand --stream digits --state runs/digits

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
@stream_option(SAMPLES_AND_UNLABELLED)
@state_option(RUNNING_STATE)
@click.option(
    "--base",
    type=int,
    metavar="SEQUENCE",
    help="The snapshot after which classes are new; default: the one that the learner's request names, or that before "
    "the newest classes.",
)
@click.option(
    "--unlabelled", metavar="TOPIC", help="Another topic of records without labels; the stream's may be missing."
)
@click.option("--epochs", type=int, help="Passes of the temporary network over the new classes' records.")
@click.option("--batch-size", type=int, help="Records of one step.")
@click.option("--lr", "learning_rate", type=float, help="Largest step size.")
@settings_option
@bootstrap_servers_option
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
    """Grow the network by a small sub-module that knows the newest classes, beside its old ones (EDE-Net).

    It works beside a running learner, from its snapshots and the log. What comes of it is offered where on the
    hold-outs it is no worse on average (acceptance.growth_gain); the learner adopts it between two batches and learns
    once more what came since. It gains by records without a label, which may be missing; a consolidation, which makes
    the network compact again, needs them.
    """
    from deploy.restructuring_by_hand import restructure_by_hand
    from deploy.settings import load_settings
    from pipeline.restructuring.trigger import Kind

    settings = load_settings(
        settings_file,
        {
            "kafka.bootstrap_servers": bootstrap_servers,
            "expansion.epochs": epochs,
            "expansion.batch_size": batch_size,
            "expansion.learning_rate": learning_rate,
        },
    )
    restructure_by_hand(
        context, Kind.EXPANSION, stream=stream, state=state, base=base, unlabelled=unlabelled, settings=settings
    )
