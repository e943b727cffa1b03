"""`palimpsest consolidate`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.command_options import (
    RUNNING_STATE,
    SAMPLES_AND_UNLABELLED,
    bootstrap_servers_option,
    settings_option,
    state_option,
    stream_option,
)

if TYPE_CHECKING:
    from deploy.settings import Settings

_WORK = Path("runs/consolidations")


@click.command(
    epilog="""\b
Examples:
  palimpsest consolidate --stream digits --state runs/digits
  palimpsest consolidate --old models:/digits/3 --new models:/digits@champion --unlabelled digits.unlabelled

\b
Exit codes:
  0  offered: the state's learner adopts it; or, of two versions, registered
  2  something you can put right: an option, a setting, a topic, a folder, a version
  3  nothing was offered: the job was refused, or its result is worse than what there is
  5  the log lost what was to be read
  6  the brokers, or MLflow, are away: start it again later
  7  the disk takes nothing
  130  interrupted; the same command goes on where it stopped"""
)
@stream_option(SAMPLES_AND_UNLABELLED, required=False)
@state_option(RUNNING_STATE, required=False)
@click.option(
    "--base", type=int, metavar="SEQUENCE", help="The old teacher's snapshot; default: before the newest classes."
)
@click.option("--old", metavar="URI", help="Instead of a state: a version, models:/NAME/NUMBER or models:/NAME@ALIAS,")
@click.option("--new", metavar="URI", help="and another one, of other classes or of some of the same.")
@click.option("--register", metavar="NAME", help="With these: the model that gets the version; default: that of --new.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"With these: a folder for what is begun; default: {_WORK}.",
)
@click.option(
    "--tracking-uri", metavar="URI", help="With these: MLflow; default: MLFLOW_TRACKING_URI, else mlflow.db by --work."
)
@click.option("--unlabelled", metavar="TOPIC", help="Another topic of records without labels.")
@click.option("--epochs", type=int, help="Passes of the student over the unlabelled records.")
@click.option("--batch-size", type=int, help="Records of one step.")
@click.option("--lr", "learning_rate", type=float, help="Largest step size.")
@settings_option
@bootstrap_servers_option
@click.pass_context
def command(
    context: click.Context,
    stream: str | None,
    state: Path | None,
    base: int | None,
    old: str | None,
    new: str | None,
    register: str | None,
    work: Path | None,
    tracking_uri: str | None,
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

    With --old and --new it takes two registered versions instead, whose classes may overlap, and registers the student
    as a new version. Versions carry no records: then it is the paper's method, without a gate, and nothing is judged.
    """
    from deploy.settings import load_settings

    of_versions = {"--old": old, "--new": new, "--register": register, "--work": work, "--tracking-uri": tracking_uri}
    is_of_versions = _of_versions_meant(of_versions, {"--state": state, "--base": base}, stream)
    settings = load_settings(
        settings_file,
        {
            "kafka.bootstrap_servers": bootstrap_servers,
            "registry.tracking_uri": tracking_uri,
            "consolidation.epochs": epochs,
            "consolidation.batch_size": batch_size,
            "consolidation.learning_rate": learning_rate,
        },
    )
    if is_of_versions:
        assert old is not None
        assert new is not None
        _consolidate_versions(context, old, new, register, unlabelled, stream, work or _WORK, settings)
    else:
        from deploy.restructuring_by_hand import restructure_by_hand
        from pipeline.restructuring.trigger import Kind

        assert stream is not None
        assert state is not None
        restructure_by_hand(
            context, Kind.CONSOLIDATION, stream=stream, state=state, base=base, unlabelled=unlabelled, settings=settings
        )


def _of_versions_meant(of_versions: Mapping[str, object], of_state: Mapping[str, object], stream: str | None) -> bool:
    """Whether two versions are meant, or a state. A usage error where neither is whole, or both."""
    given = [name for name, value in of_versions.items() if value is not None]
    given_of_state = [name for name, value in of_state.items() if value is not None]
    if given and given_of_state:
        raise click.UsageError(
            f"{given[0]} is for two registered versions, {given_of_state[0]} for a learner's state: give one of them"
        )
    if given:
        missing = [name for name in ("--old", "--new") if name not in given]
        if missing:
            raise click.UsageError(f"{given[0]} needs {' and '.join(missing)}: a version, such as models:/digits/3")
        return True
    if "--state" not in given_of_state or stream is None:
        raise click.UsageError("give --stream and --state of a learner, or --old and --new of two registered versions")
    return False


def _consolidate_versions(
    context: click.Context,
    old: str,
    new: str,
    register: str | None,
    unlabelled: str | None,
    stream: str | None,
    work: Path,
    settings: Settings,
) -> None:
    from deploy.consolidating_versions import open_versions
    from deploy.exit_codes import INTERRUPTED
    from deploy.progress import stage_progress
    from deploy.restructuring_by_hand import ended_in_a_line
    from deploy.stop_signals import stop_on_signals

    with (
        ended_in_a_line(context, "registered"),
        stop_on_signals() as stop,
        open_versions(
            old, new, register=register, unlabelled=unlabelled, stream=stream, work=work, settings=settings
        ) as opened,
    ):
        shared = f", {len(opened.shared)} of them known to both" if opened.shared else ""
        click.echo(
            f"{opened.old.uri} ({len(opened.old.class_names)} classes) and {opened.new.uri} "
            f"({len(opened.new.class_names)}{shared}); unlabelled records of {opened.topic}"
        )
        if opened.off:
            click.echo(f"versions carry no records of their classes, so without {', '.join(opened.off)}: plain DMC")
        with stage_progress("steps") as progress:
            report = opened.run(progress=progress, stop=stop)
    if report is None:
        click.echo("stopped; the same command goes on from here", err=True)
        context.exit(INTERRUPTED)
    if report.left_out:
        click.echo(f"{report.left_out:,} records that these versions do not take were left out")
    click.echo("it is not judged: versions carry no held-out samples")
    click.echo(
        f"models:/{report.version.stream}/{report.version.version} is registered: {len(report.class_names)} classes, "
        f"from {report.unlabelled_rows:,} unlabelled records in {report.seconds:.0f} s"
    )
