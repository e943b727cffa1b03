"""`palimpsest demo`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import settings_option


@click.command(
    epilog="""\b
Examples:
  palimpsest demo
  palimpsest demo --dataset mnist --data-root ~/data"""
)
@click.option("--dataset", default="digits", show_default=True, metavar="NAME", help="As for `palimpsest produce`.")
@click.option(
    "--data-root", type=click.Path(path_type=Path, file_okay=False), help="Where torchvision's data sets lie."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for broker, state, MLflow, report.html and summary.json.",
)
@click.option(
    "--records",
    type=click.IntRange(min=500),
    default=12_000,
    show_default=True,
    metavar="N",
    help="How many, with label or without.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="The same seed gives the same stream."
)
@settings_option
@click.option("--bootstrap-servers", metavar="HOST:PORT", help="A Kafka cluster; default: a broker of the demo's own.")
def command(
    dataset: str,
    data_root: Path | None,
    out: Path,
    records: int,
    seed: int,
    settings_file: Path | None,
    bootstrap_servers: str | None,
) -> None:
    """The main job end to end: a stream whose classes change, through real Kafka, into a model that remembers.

    Learns it twice, with retention and without, and shows both. Beside the first learner a worker consolidates or
    expands its network where the learner asks for it. Takes about two minutes.
    """
    from deploy.settings import load_settings

    settings = load_settings(settings_file, {"kafka.bootstrap_servers": bootstrap_servers})

    from deploy.demo import run_demo

    run_demo(
        dataset=dataset,
        data_root=data_root,
        out=out,
        records=records,
        seed=seed,
        settings=settings,
        settings_file=settings_file,
    )
