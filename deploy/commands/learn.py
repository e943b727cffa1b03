"""`palimpsest learn`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploy.exit_codes import DISK_REFUSED, EPILOG, exit_code


@click.command(
    epilog=f"""\b
Example:
  palimpsest learn --stream digits --state runs/digits --until-idle 5

{EPILOG}"""
)
@click.option("--stream", required=True, metavar="NAME", help="The stream: topics NAME.samples, NAME.events, ...")
@click.option(
    "--state", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the snapshots."
)
@click.option(
    "--settings", "settings_file", type=click.Path(path_type=Path), help="YAML file; see `palimpsest settings`."
)
@click.option(
    "--branch", default="main", show_default=True, metavar="NAME", help="Another one disturbs nothing of main's."
)
@click.option(
    "--until-idle",
    "until_idle_seconds",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Stop when no record came for so long. Default: never.",
)
@click.option(
    "--max-records", type=click.IntRange(min=1), metavar="N", help="Stop after the update that reaches so many records."
)
@click.option("--bootstrap-servers", metavar="HOST:PORT", help="A Kafka cluster; default: the embedded broker.")
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow; default: $MLFLOW_TRACKING_URI, else a SQLite file beside the state's folder.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port of /metrics; 0: a free one.  [default: 9095]",
)
@click.pass_context
def command(
    context: click.Context,
    stream: str,
    state: Path,
    settings_file: Path | None,
    branch: str,
    until_idle_seconds: float | None,
    max_records: int | None,
    bootstrap_servers: str | None,
    tracking_uri: str | None,
    metrics_port: int | None,
) -> None:
    """Learn from a stream and keep what was learnt.

    Goes on where the state's newest snapshot stands. Stops on SIGTERM or Ctrl-C after the update under way, with a
    snapshot; a second signal ends it at once. A second learner on the same branch takes over: the first one exits.

    Says what it does on stderr: lines for a person on a terminal, one JSON object a line elsewhere.
    """
    from deploy.settings import load_settings
    from deploy.stop_signals import stop_on_signals

    overrides: dict[str, Any] = {
        "kafka.bootstrap_servers": bootstrap_servers,
        "registry.tracking_uri": tracking_uri,
        "metrics.port": metrics_port,
    }
    with stop_on_signals() as stop:  # before torch is imported: a SIGTERM meanwhile must not be lost
        settings = load_settings(settings_file, overrides)

        from deploy.console import ConsoleObserver
        from deploy.learning import open_learner
        from deploy.logs import configure_logs

        console = ConsoleObserver()
        configure_logs(as_json=console.as_json)
        with open_learner(
            stream=stream,
            state=state,
            settings=settings,
            branch=branch,
            observers=[console],
            registered=console.registered,
            stop=stop,
        ) as opened:
            if opened.metrics_url:
                console.metrics_shown(opened.metrics_url)
            try:
                report = opened.process.run(stop=stop, until_idle_seconds=until_idle_seconds, max_records=max_records)
            except Exception as error:
                # What ends a run under way is told in the way of all else; what prevents a start, as by any command.
                code = exit_code(error) or (DISK_REFUSED if isinstance(error, OSError) else None)
                if code is None:
                    raise
                console.failed(error, code)
                context.exit(code)
    console.stopped(report)
