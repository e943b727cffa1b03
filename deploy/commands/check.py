"""`palimpsest check`"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.command_options import (
    SAMPLES_AND_EVENTS,
    bootstrap_servers_option,
    branch_option,
    settings_option,
    state_option,
    stream_option,
)

if TYPE_CHECKING:
    from consumers.check_report import Fact

_PROBLEM_EXIT_CODE = 1
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command(
    epilog="""\b
Examples:
  palimpsest check --stream digits
  palimpsest check --stream digits --state runs/digits --settings learner.yaml --json

\b
Exit codes:
  0  no problem; there may be warnings
  1  a problem: a learner would not start, or would stop or lose something sooner or later
  2  an option or a setting is wrong"""
)
@stream_option(SAMPLES_AND_EVENTS)
@state_option("Folder given to `palimpsest learn`, looked at too.", required=False)
@settings_option
@branch_option("The learner's branch.")
@bootstrap_servers_option
@click.option("--tracking-uri", metavar="URI", help="MLflow; default as with `palimpsest learn`.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, for programs.")
@click.pass_context
def command(
    context: click.Context,
    stream: str,
    state: Path | None,
    settings_file: Path | None,
    branch: str,
    bootstrap_servers: str | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Look at everything that a learner needs, and say what is wrong and the way out.

    Versions, brokers and their settings, topics, what is committed, ACLs, the state folder, MLflow. Changes nothing,
    and disturbs no learner that runs. Give it the learner's own settings: it sees what that user may do.
    """
    from deploy.settings import load_settings

    settings = load_settings(
        settings_file, {"kafka.bootstrap_servers": bootstrap_servers, "registry.tracking_uri": tracking_uri}
    )

    from consumers.check_report import is_healthy
    from consumers.cluster_check import check_cluster
    from deploy.installation_check import check_installation, check_registry

    facts = check_installation()
    cluster = check_cluster(
        settings.kafka, stream=stream, branch=branch, heartbeat_seconds=settings.stream.heartbeat_seconds
    )
    facts += cluster.facts
    if state is not None:
        from consumers.state_folder_check import check_state_folder

        facts += check_state_folder(state, stream=stream, branch=branch, snapshots=settings.snapshots, log=cluster.log)
    if settings.registry.enabled:
        uri = settings.registry.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None and state is not None:
            from deploy.learning import chosen_tracking_uri

            uri = chosen_tracking_uri(settings, state)
        facts += check_registry(uri)
    healthy = is_healthy(facts)
    if as_json:
        document = {"stream": stream, "branch": branch, "healthy": healthy, "facts": [fact.as_json for fact in facts]}
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        _draw(facts)
    context.exit(0 if healthy else _PROBLEM_EXIT_CODE)


def _draw(facts: Sequence[Fact]) -> None:
    """A line a fact, the way out below it; what is wrong is counted at the end."""
    width = min(56, max(len(fact.name) for fact in facts))
    part = ""
    for fact in facts:
        if fact.part != part:
            part = fact.part
            click.echo(click.style(f"\n{part}", bold=True) if sys.stdout.isatty() else f"\n{part}")
        verdict = f"{fact.verdict:<8}"
        click.echo(f"  {_coloured(verdict, fact.verdict)} {fact.name:<{width}}  {fact.value}")
        if fact.way_out:
            click.echo(f"           -> {fact.way_out}")
    counts = {verdict: sum(fact.verdict == verdict for fact in facts) for verdict in _COLOURS}
    click.echo(f"\nproblems: {counts['problem']}, warnings: {counts['warning']}, ok: {counts['ok']}")


def _coloured(text: str, verdict: str) -> str:
    return click.style(text, fg=_COLOURS[verdict]) if sys.stdout.isatty() else text
