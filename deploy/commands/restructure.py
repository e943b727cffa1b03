"""`palimpsest restructure`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.command_options import (
    SAMPLES_AND_UNLABELLED,
    bootstrap_servers_option,
    settings_option,
    state_option,
    stream_option,
)


@click.command(
    epilog="""\b
Example:
  palimpsest restructure --stream digits --state runs/digits

\b
Exit codes:
  0    done, also where SIGTERM or Ctrl-C ended it: the job under way goes on at the next start
  1    a bug, with its traceback: start it again, the job goes on, and is refused where that does not help
  2    something you can put right: an option, a setting, a folder
  130  ended by a second Ctrl-C before it could stop by itself"""
)
@stream_option(SAMPLES_AND_UNLABELLED)
@state_option("Folder given to `palimpsest learn`, which runs beside it.")
@settings_option
@click.option(
    "--until-idle",
    "until_idle_seconds",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Stop when nothing was asked for so long. Default: never.",
)
@bootstrap_servers_option
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port of /metrics; 0: a free one.  [default: 9097]",
)
def command(
    stream: str,
    state: Path,
    settings_file: Path | None,
    until_idle_seconds: float | None,
    bootstrap_servers: str | None,
    metrics_port: int | None,
) -> None:
    """Do the restructurings that a stream's learner asks for, beside it and at low priority.

    The learner asks where classes are new and its settings say so (learner.restructuring: how many, a period, drift,
    forgetting). What is made is offered where on the hold-outs it is no worse within margins (acceptance), and the
    learner adopts it between two batches; where no good network can come of it, the learner is told why, and goes on
    as it is.

    Says what it does on stderr: lines for a person on a terminal, one JSON object a line elsewhere.
    """
    import os
    from contextlib import ExitStack

    from deploy.settings import load_settings
    from deploy.stop_signals import stop_on_signals

    overrides = {"kafka.bootstrap_servers": bootstrap_servers, "worker.metrics_port": metrics_port}
    with stop_on_signals() as stop, ExitStack() as stack:  # before torch is imported: a SIGTERM meanwhile is not lost
        settings = load_settings(settings_file, overrides)
        os.nice(settings.worker.nice)

        from consumers.topics import check_stream_name
        from consumers.worker_metrics import WorkerMetrics
        from deploy.logs import configure_logs
        from deploy.restructuring_worker import RestructuringWorker
        from deploy.worker_console import WorkerConsole
        from deploy.worker_page import worker_page

        check_stream_name(stream)
        console = WorkerConsole()
        configure_logs(as_json=console.as_json)
        metrics = WorkerMetrics(stream=stream, stale_after_seconds=settings.worker.stale_after_seconds)
        worker = RestructuringWorker(stream=stream, state=state, settings=settings, console=console, observer=metrics)
        console.started(stream, str(state))
        if settings.metrics.enabled:
            console.metrics_shown(stack.enter_context(worker_page(settings, metrics)).url)
        report = worker.run(stop, until_idle_seconds)
    console.stopped(report.stopped_by, report.offered, report.refused)
