"""`palimpsest r-matrix`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import bootstrap_servers_option, settings_option, stream_option


@click.command(
    epilog="""\b
Example:
  palimpsest r-matrix --stream digits --json runs/r-matrix.json"""
)
@stream_option("A stream whose records carry ce_task.")
@settings_option
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write R and its figures here."
)
@bootstrap_servers_option
def command(stream: str, settings_file: Path | None, json_file: Path | None, bootstrap_servers: str | None) -> None:
    """Accuracy on every task after every task, with ACC, BWT and FWT (Lopez-Paz and Ranzato 2017).

    Learns the log again from its beginning, beside whatever runs, and disturbs nothing.
    """
    import json

    from deploy.settings import load_settings
    from pipeline.user_error import UserError

    settings = load_settings(settings_file, {"kafka.bootstrap_servers": bootstrap_servers})
    if json_file is not None:  # before the log is learnt again, and not after
        try:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.open("a").close()
        except OSError as error:
            raise UserError(f"cannot write {json_file}: {error.strerror}; give another --json") from None

    from consumers import topics
    from consumers.kafka_record_source import KafkaRecordSource
    from consumers.task_replay import replay_tasks
    from deploy.progress import stage_progress
    from pipeline.device import configure_torch

    topics.check_stream_name(stream)
    configure_torch(settings.learner)
    samples = topics.check_samples_topic(settings.kafka, stream)
    with KafkaRecordSource(settings.kafka, samples.partitions) as source, stage_progress() as progress:
        replay = replay_tasks(source, settings.learner, progress=progress)
    matrix = replay.matrix
    width = max(6, *(len(name) for name in replay.tasks))
    click.echo(f"{'after':<{width}}  " + "  ".join(f"{name:>{width}}" for name in replay.tasks))
    for name, row in zip(replay.tasks, matrix.R, strict=True):
        click.echo(f"{name:<{width}}  " + "  ".join(f"{value:>{width}.3f}" for value in row))
    transfers = {"BWT": matrix.backward_transfer, "FWT": matrix.forward_transfer}
    shown = [f"{name} {value:+.4f}" for name, value in transfers.items() if value is not None]
    click.echo("   ".join([f"ACC {matrix.accuracy:.4f}", *shown]))
    if json_file is not None:
        json_file.write_text(
            json.dumps(
                {
                    "tasks": list(replay.tasks),
                    "held_out": list(replay.held_out),
                    "R": matrix.R.tolist(),
                    "random": matrix.b.tolist(),
                    "ACC": matrix.accuracy,
                    **transfers,
                },
                indent=2,
            )
            + "\n"
        )
