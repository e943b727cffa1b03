"""`palimpsest promote`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import MODEL, bootstrap_servers_option, settings_option, state_option, stream_option


@click.command(
    epilog="""\b
Examples:
  palimpsest promote --stream digits --version challenger
  palimpsest promote --stream digits --version challenger --state /data/digits
  palimpsest promote --stream digits --version 7 --force --by ada

\b
Exit codes:
  0  promoted, or the champion already
  2  something you can put right: an option, a setting, a folder, a version
  3  the gate refused it; nothing is changed
  6  MLflow is away, or the brokers are while it is judged: run it again later; or it is promoted, and the brokers did
     not take the event: run it again"""
)
@stream_option(MODEL)
@click.option("--version", "at", required=True, metavar="N|ALIAS", help="A version's number, or an alias: challenger.")
@state_option(
    "Folder given to `palimpsest learn`, which may be running: its hold-outs judge.  [default: runs/NAME, where "
    "there is such a state]",
    required=False,
)
@click.option("--force", is_flag=True, help="Promote what the gate refuses, unless it could not be served at all.")
@click.option("--by", metavar="NAME", help="Who promotes, for the history; default: this user.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write all of it to this file."
)
@click.option(
    "--tracking-uri", metavar="URI", help="MLflow; default: MLFLOW_TRACKING_URI, else mlflow.db by --state, or in runs."
)
@settings_option
@bootstrap_servers_option
@click.pass_context
def command(
    context: click.Context,
    stream: str,
    at: str,
    state: Path | None,
    force: bool,
    by: str | None,
    json_file: Path | None,
    tracking_uri: str | None,
    settings_file: Path | None,
    bootstrap_servers: str | None,
) -> None:
    """Make a version the champion, which predictors serve, if it is no worse than the one that is.

    Both are judged on the hold-outs of the learner's newest snapshot (--state) and on what a predictor's shadow
    recorded: average accuracy, the worst class's, forgetting, calibration, latency, size, each with a bound in the
    settings (promotion.*). The alias `previous` keeps the way back: `palimpsest rollback`. Who promoted what, when and
    on which figures stands in the version's tag palimpsest.promotions and in the stream's events.
    """
    from deploy.settings import load_settings

    settings = load_settings(
        settings_file, {"kafka.bootstrap_servers": bootstrap_servers, "registry.tracking_uri": tracking_uri}
    )

    from consumers.topics import check_stream_name
    from deploy.existing_registry import existing_registry, registry_errors
    from deploy.exit_codes import NOT_OFFERED, exit_code
    from deploy.learning import chosen_tracking_uri
    from deploy.promoting import promote
    from deploy.promotion_lines import check_json_file, print_report, write_json
    from deploy.shadow import pair_scores
    from deploy.state_folder import usual_state
    from deploy.user_name import user_name
    from model_store.model_uri import ModelUri
    from model_store.registry import check_model_name
    from pipeline.device import configure_torch

    check_model_name(check_stream_name(stream))
    wanted = ModelUri.parse(f"models:/{stream}/{at}" if at.isdecimal() else f"models:/{stream}@{at}")
    if json_file is not None:
        check_json_file(json_file)
    if state is None:
        state = usual_state(stream)
        if state is not None:
            click.echo(f"--state is {state}, since there is a state of {stream!r}", err=True)
    configure_torch(settings.learner)
    with registry_errors():
        report = promote(
            existing_registry(chosen_tracking_uri(settings, state)),
            stream,
            wanted.at,
            by=by or user_name(),
            force=force,
            state=state,
            settings=settings,
            shadow=pair_scores(settings, stream, may_be_away=force),
        )
    print_report(report, forced=force)
    if json_file is not None:
        write_json(report, json_file)
    if report.refused:
        context.exit(NOT_OFFERED)
    if report.problem is not None:
        context.exit(exit_code(report.problem) or 1)
