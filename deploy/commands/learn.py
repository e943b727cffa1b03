"""`palimpsest learn`"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from deploy.command_options import (
    SAMPLES_AND_EVENTS,
    bootstrap_servers_option,
    branch_option,
    settings_option,
    state_option,
    stream_option,
)
from deploy.exit_codes import DISK_REFUSED, EPILOG, exit_code


@click.command(
    epilog=f"""\b
Example:
  palimpsest learn --stream digits --state runs/digits --until-idle 5

{EPILOG}"""
)
@stream_option(SAMPLES_AND_EVENTS)
@state_option("Folder of the snapshots.")
@settings_option
@branch_option("Another one disturbs nothing of main's.")
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
@click.option(
    "--accept-gap",
    is_flag=True,
    help="Go on where the log has lost what was to be learnt next (retention, a lost tail, a topic made anew).",
)
@click.option(
    "--from-state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Another --branch than main begins with a snapshot of this state; needs --from-snapshot.",
)
@click.option("--from-snapshot", metavar="N", help="Which one: SEQUENCE or GENERATION-SEQUENCE.")
@click.option(
    "--from-offsets",
    metavar="P:O,...",
    help="Another --branch than main begins with a new model at these offsets, at an RFC 3339 time, beginning or end.",
)
@bootstrap_servers_option
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
@click.option("--no-live", is_flag=True, help="On a terminal: lines alone, and no figures at the bottom.")
@click.pass_context
def command(
    context: click.Context,
    stream: str,
    state: Path,
    settings_file: Path | None,
    branch: str,
    until_idle_seconds: float | None,
    max_records: int | None,
    accept_gap: bool,
    from_state: Path | None,
    from_snapshot: str | None,
    from_offsets: str | None,
    bootstrap_servers: str | None,
    tracking_uri: str | None,
    metrics_port: int | None,
    no_live: bool,
) -> None:
    """Learn from a stream and keep what was learnt.

    Goes on where the state's newest snapshot stands. Stops on SIGTERM or Ctrl-C after the update under way, with a
    snapshot; a second signal ends it at once. A second learner on the same branch takes over: the first one exits.

    Says what it does on stderr. On a terminal that is lines for a person, with the figures of the moment below them
    (without colours where NO_COLOR is set, lines alone where TERM is dumb); elsewhere one JSON object a line.
    `palimpsest status` asks a learner that runs somewhere else.
    """
    from deploy.settings import load_settings
    from deploy.settled_objects import settled
    from deploy.stop_signals import stop_on_signals

    overrides: dict[str, Any] = {
        "kafka.bootstrap_servers": bootstrap_servers,
        "registry.tracking_uri": tracking_uri,
        "metrics.port": metrics_port,
    }
    with stop_on_signals() as stop:  # before torch is imported: a SIGTERM meanwhile must not be lost
        settings = load_settings(settings_file, overrides)

        from consumers.commit_log import BrokerUnavailable
        from consumers.record_source import SourceUnavailable
        from consumers.state_lock import LockStopped
        from deploy.console import ConsoleObserver
        from deploy.learning import open_learner
        from deploy.logs import configure_logs

        console = ConsoleObserver()
        configure_logs(as_json=console.as_json)
        with ExitStack() as stack:
            try:
                if (from_state, from_snapshot, from_offsets) != (None, None, None):
                    from deploy.rewinding import rewind

                    rewind(
                        stream=stream,
                        branch=branch,
                        state=state,
                        settings=settings,
                        from_state=from_state,
                        from_snapshot=from_snapshot,
                        from_offsets=from_offsets,
                        stop=stop,
                    )
                opened = stack.enter_context(
                    open_learner(
                        stream=stream,
                        state=state,
                        settings=settings,
                        branch=branch,
                        observers=[console],
                        registered=console.registered,
                        stop=stop,
                        accept_gap=accept_gap,
                    )
                )
            except (BrokerUnavailable, SourceUnavailable, LockStopped):
                if not stop.is_set():
                    raise
                console.stopped_at_start()  # it was told to end, and so it did; no brokers are to blame
                return
            except OSError as error:  # an accepted gap has to be recorded before anything is learnt
                console.failed(error, DISK_REFUSED)
                context.exit(DISK_REFUSED)
            if opened.metrics_url:
                from deploy.running_learners import announced

                stack.enter_context(announced(stream=stream, branch=branch, url=opened.metrics_url, state=state))
                console.metrics_shown(opened.metrics_url)
            try:
                with settled(), ExitStack() as drawing:
                    if not (no_live or console.as_json):
                        from deploy.live_status import LiveStatus, is_drawn_on

                        if is_drawn_on(sys.stderr):
                            console.shows_figures = False
                            drawing.enter_context(LiveStatus(opened.status, is_stopping=stop.is_set))
                    report = opened.process.run(
                        stop=stop, until_idle_seconds=until_idle_seconds, max_records=max_records
                    )
            except Exception as error:
                # What ends a run under way is told in the way of all else; what prevents a start, as by any command.
                code = exit_code(error) or (DISK_REFUSED if isinstance(error, OSError) else None)
                if code is None:
                    raise
                console.failed(error, code)
                context.exit(code)
    console.stopped(report)
