"""`palimpsest rollback`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import MODEL, bootstrap_servers_option, settings_option, stream_option


@click.command(
    epilog="""\b
Example:
  palimpsest rollback --stream digits

\b
Exit codes:
  0  rolled back
  2  something you can put right: an option, a setting, no version to go back to
  6  MLflow is away: run it again later; or it is rolled back, and the brokers did not take the event: run it again"""
)
@stream_option(MODEL)
@click.option("--by", metavar="NAME", help="Who rolls back, for the history; default: this user.")
@click.option("--tracking-uri", metavar="URI", help="MLflow; default: MLFLOW_TRACKING_URI, else runs/mlflow.db.")
@settings_option
@bootstrap_servers_option
@click.pass_context
def command(
    context: click.Context,
    stream: str,
    by: str | None,
    tracking_uri: str | None,
    settings_file: Path | None,
    bootstrap_servers: str | None,
) -> None:
    """Make the version before the champion the champion again; `previous` is then the one that was.

    Nothing is judged: it is for when something is wrong. Another version than the one before: `palimpsest promote
    --version N --force`.
    """
    from deploy.settings import load_settings

    settings = load_settings(
        settings_file, {"kafka.bootstrap_servers": bootstrap_servers, "registry.tracking_uri": tracking_uri}
    )

    from consumers.topics import check_stream_name
    from deploy.existing_registry import existing_registry, registry_errors
    from deploy.exit_codes import exit_code
    from deploy.learning import chosen_tracking_uri
    from deploy.promoting import roll_back
    from deploy.promotion_lines import print_report
    from deploy.user_name import user_name
    from model_store.registry import check_model_name

    check_model_name(check_stream_name(stream))
    with registry_errors():
        registry = existing_registry(chosen_tracking_uri(settings, None))
        report = roll_back(registry, stream, by=by or user_name(), settings=settings)
    print_report(report, forced=False)
    if report.problem is not None:
        context.exit(exit_code(report.problem) or 1)
