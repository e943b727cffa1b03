"""`palimpsest produce`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import SAMPLES_AND_UNLABELLED, bootstrap_servers_option, settings_option, stream_option
from deploy.completed_values import names_in

_STOPPED_EXIT_CODE = 130  # as a shell has it for a program that Ctrl-C ended
_DATASETS = "digits|mnist|fashion-mnist|cifar10|torchvision:NAME|folder:DIR|csv:FILE|jsonl:FILE|npz:FILE|avalanche:NAME"
_SCHEDULES = "split|blurred|recurring|long-tail|drifting"


@click.command(
    epilog="""\b
Examples:
  palimpsest produce --stream digits --dataset digits --schedule blurred --unlabelled-share 0.15
  palimpsest produce --stream mnist --dataset mnist --data-root ~/data --schedule drifting --rate 500
  palimpsest produce --stream news --dataset csv:news.tsv --text-column 1 --label-column 2 --classes-per-step 3"""
)
@stream_option(SAMPLES_AND_UNLABELLED)
@click.option(
    "--dataset",
    "dataset_spec",
    required=True,
    metavar=_DATASETS,
    shell_complete=names_in(_DATASETS),
    help="What is sent.",
)
@click.option(
    "--schedule",
    "schedule_name",
    default="split",
    show_default=True,
    metavar=_SCHEDULES,
    shell_complete=names_in(_SCHEDULES),
    help="Which classes come when.",
)
@click.option("--classes-per-step", type=click.IntRange(min=1), default=2, show_default=True, metavar="N")
@click.option("--shuffle-classes", is_flag=True, help="The classes in an order drawn by the seed.")
@click.option(
    "--blur",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="blurred: how much of a step mixes with the next.  [default: 0.5]",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    metavar="N",
    help="recurring, drifting: how often the classes come.  [default: 3]",
)
@click.option(
    "--imbalance",
    type=click.FloatRange(min=1),
    metavar="FACTOR",
    help="long-tail: the first class's frequency over the last one's.  [default: 100]",
)
@click.option(
    "--records",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many, labelled or not; more than there are come again, slightly shifted and turned.  "
    "[default: the data set once]",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Records per second.  [default: as fast as it goes]",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="The same seed gives the same records with the same ce_id; learners drop repeats.",
)
@click.option(
    "--unlabelled-share",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Of the records, to NAME.unlabelled, without a label.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Which part of a data set that has both.",
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where torchvision's data sets lie.  [default: $PALIMPSEST_DATA, else ./data]",
)
@click.option("--download", is_flag=True, help="Let torchvision or Avalanche fetch what is not there.")
@click.option("--encoding", type=click.Choice(["png", "npy"]), help="Of images that are not files.  [default: png]")
@click.option(
    "--text-column",
    metavar="COLUMN",
    help="csv, jsonl: the text; else `text` if there is one, else all columns are numbers. "
    "csv without a line of names: a number from 1 on.",
)
@click.option("--label-column", default="label", show_default=True, metavar="COLUMN", help="csv, jsonl: the class.")
@click.option("--delimiter", metavar="CHARACTER", help="csv.  [default: a tab for .tsv, else a comma]")
@click.option(
    "--partitions",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Of topics that are made; those that are there stay as they are.",
)
@settings_option
@bootstrap_servers_option
@click.pass_context
def command(
    context: click.Context,
    stream: str,
    dataset_spec: str,
    schedule_name: str,
    classes_per_step: int,
    shuffle_classes: bool,
    blur: float | None,
    rounds: int | None,
    imbalance: float | None,
    records: int | None,
    rate: float | None,
    seed: int,
    unlabelled_share: float,
    split: str,
    data_root: Path | None,
    download: bool,
    encoding: str | None,
    text_column: str | None,
    label_column: str,
    delimiter: str | None,
    partitions: int,
    settings_file: Path | None,
    bootstrap_servers: str | None,
) -> None:
    """Send a data set as a stream whose classes change.

    \b
    split      steps with classes of their own that never come again
    blurred    as split, but each step fades into the next
    recurring  the classes come back, round after round
    long-tail  as split, with frequencies that fall exponentially
    drifting   images turn steadily while classes come, go and come back (after MNIST-360)

    The order is the same for a seed, and on one partition it is the order of the log. Stops on SIGTERM or Ctrl-C when
    what is under way has arrived.
    """
    from deploy.progress import stage_progress
    from deploy.settings import load_settings
    from deploy.stop_signals import stop_on_signals

    settings = load_settings(settings_file, {"kafka.bootstrap_servers": bootstrap_servers})
    with stop_on_signals() as stop:
        from producers.dataset_source import DatasetOptions, default_data_root
        from producers.datasets import open_dataset
        from producers.sample_producer import produce
        from producers.sample_stream import SampleStream
        from producers.schedules import open_schedule

        # The schedule first: what is wrong with it is found before a data set is read.
        schedule = open_schedule(schedule_name, blur=blur, rounds=rounds, imbalance=imbalance)
        options = DatasetOptions(
            data_root=data_root or default_data_root(),
            split=split,  # type: ignore[arg-type]  # click.Choice lets nothing else through
            download=download,
            encoding=encoding,  # type: ignore[arg-type]
            text_column=text_column,
            label_column=label_column,
            delimiter=delimiter,
            seed=seed,
        )
        sample_stream = SampleStream(
            open_dataset(dataset_spec, options),
            schedule,
            seed=seed,
            records=records,
            classes_per_step=classes_per_step,
            shuffle_classes=shuffle_classes,
            unlabelled_share=unlabelled_share,
        )
        title = f"{stream} ({sample_stream.dataset.name}, {schedule.name})"
        with stage_progress() as show:
            report = produce(
                sample_stream,
                stream_name=stream,
                kafka=settings.kafka,
                partitions=partitions,
                records_per_second=rate,
                on_progress=lambda progress: show(title, progress.delivered, progress.total),
                stop=stop,
            )
    rest = f" of {report.total:,}" if report.stopped else ""
    click.echo(
        f"{'stopped' if report.stopped else 'produced'}: {report.delivered:,}{rest} records in {report.seconds:.1f} s "
        f"({report.delivered / max(report.seconds, 1e-9):,.0f}/s), {report.labelled:,} to {stream}.samples and "
        f"{report.unlabelled:,} to {stream}.unlabelled"
    )
    if report.stopped:
        context.exit(_STOPPED_EXIT_CODE)
