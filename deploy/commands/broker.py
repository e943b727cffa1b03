"""`palimpsest broker`: real Apache Kafka on this machine, from pip alone."""

from __future__ import annotations

import os
from pathlib import Path

import click

_DEFAULT_PORT = 9092
_DEFAULT_HEAP_MB = 512


def default_data_dir() -> Path:
    """Where the broker keeps its data unless told otherwise: `$PALIMPSEST_BROKER_DIR`, or below the home folder."""
    chosen = os.environ.get("PALIMPSEST_BROKER_DIR")
    return Path(chosen) if chosen else Path.home() / ".local" / "share" / "palimpsest" / "broker"


_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=True, path_type=Path),
    default=default_data_dir,
    help="Folder of the broker's data, settings and log.  [default: $PALIMPSEST_BROKER_DIR, "
    "else ~/.local/share/palimpsest/broker]",
)


@click.group(name="broker")
def command() -> None:
    """Run Apache Kafka on this machine: no Docker, no root, no Java of your own.

    One KRaft node that listens on 127.0.0.1 only. To use a cluster of your own instead, give the other commands
    --bootstrap-servers; then nothing here is needed.

    \b
    Example:
      palimpsest broker start
      palimpsest produce --stream digits --dataset digits --schedule split
      palimpsest broker stop
    """


@command.command()
def install() -> None:
    """Fetch Kafka's jars (46, about 45 MB) and compare each with the committed SHA-256 sums.

    `start` does this by itself; afterwards no network is needed. The jars lie in $PALIMPSEST_CACHE, else in
    ~/.cache/palimpsest.

    \b
    Example:
      palimpsest broker install
    """
    from deploy.kafka_jars import KAFKA_VERSION, install_jars, jar_folder

    jars = install_jars(tell=click.echo)
    click.echo(f"Apache Kafka {KAFKA_VERSION}: {len(jars)} jars in {jar_folder()}, every one as in the lock")


@command.command()
@_data_dir
@click.option(
    "--port", type=click.IntRange(0, 65535), default=_DEFAULT_PORT, show_default=True, help="0: pick a free one."
)
@click.option(
    "--heap-mb", type=click.IntRange(min=128), default=_DEFAULT_HEAP_MB, show_default=True, help="Java's heap, in MiB."
)
@click.option(
    "--timeout-seconds",
    type=click.FloatRange(min=1),
    default=120,
    show_default=True,
    help="How long it may take until it answers; a busy machine needs half a minute for Java alone.",
)
def start(data_dir: Path, port: int, heap_mb: int, timeout_seconds: float) -> None:
    """Start the broker, wait until it answers, and leave it running.

    Starting it again is no error. Topics and offsets survive a stop.

    \b
    Example:
      palimpsest broker start --port 0 --data-dir /tmp/broker
    """
    from deploy.embedded_kafka import EmbeddedKafka

    broker = EmbeddedKafka(data_dir, port=port, heap_mb=heap_mb, tell=click.echo)
    started = broker.start(timeout_seconds=timeout_seconds)
    click.echo(f"{'started' if started else 'already running'}: {broker.bootstrap_servers}")


@command.command()
@_data_dir
@click.option(
    "--timeout-seconds",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    help="How long it may take to close its logs before it is killed.",
)
def stop(data_dir: Path, timeout_seconds: float) -> None:
    """Stop the broker; its data stays.

    \b
    Example:
      palimpsest broker stop
    """
    from deploy.embedded_kafka import EmbeddedKafka

    stopped = EmbeddedKafka(data_dir).stop(timeout_seconds=timeout_seconds)
    click.echo("stopped" if stopped else f"no broker was running in {data_dir}")


@command.command()
@_data_dir
@click.pass_context
def status(context: click.Context, data_dir: Path) -> None:
    """Say whether the broker runs and where; exit code 0 if it does, 1 if it does not.

    \b
    Example:
      palimpsest broker status || palimpsest broker start
    """
    from deploy.embedded_kafka import EmbeddedKafka

    broker = EmbeddedKafka(data_dir)
    pid = broker.pid
    click.echo("running" if pid is not None else "stopped")
    if pid is not None:
        click.echo(f"pid: {pid}")
        click.echo(f"bootstrap servers: {broker.bootstrap_servers}")
    click.echo(f"cluster id: {broker.cluster_id or '(none yet)'}")
    click.echo(f"data dir: {broker.data_dir}")
    click.echo(f"log: {broker.log_file}")
    if pid is None:
        context.exit(1)
