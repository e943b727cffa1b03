"""What the benchmarks' command lines share: the broker named, the command as it stands in a result, the end."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from deploy.logs import configure_logs
from pipeline.user_error import UserError


@contextmanager
def broker_at(bootstrap_servers: str | None) -> Iterator[KafkaSettings]:
    """The cluster named with `--bootstrap-servers`, else the embedded broker, for as long as this is open."""
    if bootstrap_servers:
        yield KafkaSettings(bootstrap_servers=bootstrap_servers)
        return
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka(Path(folder)) as broker:
        yield KafkaSettings(bootstrap_servers=broker.bootstrap_servers)


def command_of(module: str, arguments: Sequence[str] | None) -> str:
    """`python -m module ...`, as a shell takes it; `arguments` None: those of this process."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


def write_result(file: Path, result: Mapping[str, Any]) -> None:
    """As JSON, in a folder that is made where it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


def run(main: Callable[[], None], name: str) -> None:
    """What `python -m benchmarks.NAME` does: what the user can put right is one line and an exit code."""
    configure_logs()
    try:
        main()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
