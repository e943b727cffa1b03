"""`palimpsest predict`"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from deploy.command_options import bootstrap_servers_option, settings_option, stream_option


@click.command(
    epilog="""\b
Example:
  palimpsest predict --stream digits --input digits.requests --output digits.predictions

\b
Exit codes:
  0  done, also where SIGTERM or Ctrl-C ended it: the batch under way is answered
  2  something you can put right: an option, a setting, a topic, a folder
  4  another predictor of the same --instance has taken over
  5  a request lies there that cannot be read as a record
  6  the brokers are away at the start: start it again later"""
)
@stream_option("The stream, which is also the model's name in MLflow.")
@click.option("--input", "source", metavar="TOPIC", help="Requests.  [default: NAME.requests]")
@click.option("--output", metavar="TOPIC", help="Answers.  [default: NAME.predictions; of the challenger NAME.shadow]")
@click.option(
    "--role",
    type=click.Choice(["champion", "challenger"]),
    default="champion",
    show_default=True,
    help="The alias whose version answers; the challenger's answers are compared, and nobody waits for them.",
)
@click.option(
    "--instance", metavar="NAME", help="Stable and of this process alone.  [default: the name of this machine]"
)
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the versions that it serves: with it, it starts without MLflow.  [default: runs/NAME.models]",
)
@settings_option
@click.option(
    "--until-idle",
    "until_idle_seconds",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Stop when all is answered and no request came for so long. Default: never.",
)
@bootstrap_servers_option
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow; default: $MLFLOW_TRACKING_URI, else a SQLite file beside the folder of --models.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Of POST /predict and /metrics; 0: a free one.  [default: 9096]",
)
def command(
    stream: str,
    source: str | None,
    output: str | None,
    role: str,
    instance: str | None,
    models: Path | None,
    settings_file: Path | None,
    until_idle_seconds: float | None,
    bootstrap_servers: str | None,
    tracking_uri: str | None,
    port: int | None,
) -> None:
    """Answer requests with the version that is champion, and with another one as soon as that is promoted.

    Each request (a payload with its content-type, as a sample without a label) is answered exactly once, in a Kafka
    transaction: read the answers with isolation.level=read_committed. Start as many instances as the input has
    partitions. The same process answers single payloads on POST /predict.

    Says what it does on stderr: lines for a person on a terminal, one JSON object a line elsewhere.
    """
    from typing import cast

    from deploy.settings import load_settings
    from deploy.stop_signals import stop_on_signals

    overrides: dict[str, Any] = {
        "kafka.bootstrap_servers": bootstrap_servers,
        "registry.tracking_uri": tracking_uri,
        "predictor.port": port,
    }
    with stop_on_signals() as stop:  # before torch is imported: a SIGTERM meanwhile must not be lost
        settings = load_settings(settings_file, overrides)

        from consumers import topics
        from consumers.commit_log import BrokerUnavailable
        from consumers.record_source import SourceUnavailable
        from deploy.logs import configure_logs
        from deploy.predicting import open_predictor, this_machine
        from deploy.predictor_console import PredictorConsole
        from pipeline.evaluation.shadow_scores import Role

        console = PredictorConsole()
        configure_logs(as_json=console.as_json)
        source = source or topics.requests(stream)
        if output is None and role == "champion":
            output = settings.shadow.predictions or topics.predictions(stream)
        output = output or settings.shadow.answers or topics.shadow(stream)
        instance = instance or this_machine()
        with ExitStack() as stack:
            try:
                opened = stack.enter_context(
                    open_predictor(
                        stream=stream,
                        role=cast(Role, role),
                        source=source,
                        output=output,
                        models=models or Path("runs") / f"{stream}.models",
                        instance=instance,
                        settings=settings,
                        console=console,
                        stop=stop,
                    )
                )
            except (BrokerUnavailable, SourceUnavailable):
                if not stop.is_set():
                    raise
                console.stopped_at_start()  # it was told to end, and so it did; no brokers are to blame
                return
            console.started(stream=stream, role=role, instance=instance, source=source, output=output, url=opened.url)
            report = opened.predictor.run(stop, until_idle_seconds)
    console.stopped(report)
