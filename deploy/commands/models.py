"""`palimpsest models`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import MODEL, settings_option, stream_option


@click.command(
    epilog="""\b
Example:
  palimpsest models --stream digits

\b
Exit codes:
  0  listed
  2  something you can put right: an option, a setting, a model that is not there
  6  MLflow is away: run it again later"""
)
@stream_option(MODEL)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="So many, the newest first.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.option("--tracking-uri", metavar="URI", help="MLflow; default: MLFLOW_TRACKING_URI, else runs/mlflow.db.")
@settings_option
def command(stream: str, limit: int, as_json: bool, tracking_uri: str | None, settings_file: Path | None) -> None:
    """List the versions of a stream's model: what made each, how good it was, which has a role, who promoted it.

    Accuracy and forgetting are those of the learner's newest evaluation when the version was made. A superseded version
    is of a stretch of the log that was learnt again since, after a restructuring.
    """
    from deploy.settings import load_settings

    settings = load_settings(settings_file, {"registry.tracking_uri": tracking_uri})

    import json

    from deploy.existing_registry import existing_registry, registry_errors
    from deploy.learning import chosen_tracking_uri
    from deploy.model_versions import version_facts, version_rows
    from deploy.tables import print_table
    from model_store.registry import check_model_name
    from pipeline.user_error import UserError

    check_model_name(stream)
    with registry_errors():
        versions = existing_registry(chosen_tracking_uri(settings, None)).versions(stream)
    if not versions:
        raise UserError(f"there is no model {stream!r} in this MLflow; check --stream, or --tracking-uri")
    newest = versions[::-1][:limit]
    # In a role or not: what serves now must not fall out of the list.
    shown = [*newest, *(version for version in versions[::-1][limit:] if version.aliases)]
    if as_json:
        click.echo(json.dumps([version_facts(version) for version in shown], ensure_ascii=False, indent=1))
        return
    columns, rows = version_rows(shown)
    print_table(columns, rows, right=("version", "parent", "classes", "records", "accuracy", "forgetting"))
    if len(shown) < len(versions):
        click.echo(f"{len(versions) - len(shown):,} older ones are not shown (--limit)")
