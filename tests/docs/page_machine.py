"""What the pages' reader has: `palimpsest` and `python` on the PATH, a broker, MLflow's tables, free ports.

Ports that a page names by their usual numbers are others here, since the machine may have its own use for these; so is
the broker's address. How long `--until-idle` waits is shortened. Nothing else of a command is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from consumers import kafka_connection
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from deploy.kafka_jars import jar_folder
from deploy.local_port import free_ports
from deploy.settings import Settings
from tests.docs.pages import ROOT

_IDLE_SECONDS = 0.5
_PORTS = ("9095", "9096", "9097")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageMachine:
    """Made once for all pages."""

    broker: EmbeddedKafka
    programs: Path  # the folder that comes first on the PATH
    server: Path  # the fork server's socket
    empty_database: Path
    ports: Mapping[str, int] = field(default_factory=lambda: dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True)))

    def environment(self, folder: Path, *, registers: bool, source: Path = ROOT) -> dict[str, str]:
        """Of a page's shell. `registers`: learners make versions; `source`: the repository, or a copy of it."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PALIMPSEST_", "MLFLOW_"))
        }
        path = [str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        environment = {
            **inherited,
            "PATH": os.pathsep.join(path),
            "HOME": str(folder),
            "PYTHONPATH": str(source),
            "CLASSPATH": f"{jar_folder()}/*{os.pathsep}.",
            "OMP_NUM_THREADS": "1",
            "PALIMPSEST_CACHE": str(jar_folder().parent),
            "PALIMPSEST_BROKER_DIR": str(self.broker.data_dir),
            "PALIMPSEST_KAFKA__BOOTSTRAP_SERVERS": self.broker.bootstrap_servers,
            "PALIMPSEST_LEARNER__DEVICE": "cpu",
            "PALIMPSEST_STREAM__IDLE_FLUSH_SECONDS": "0.2",
            "PALIMPSEST_SNAPSHOTS__EVERY_SECONDS": "1",
        }
        if source == ROOT:
            environment["PAGES_FORK_SERVER"] = str(self.server)
        if not registers:
            environment["PALIMPSEST_REGISTRY__ENABLED"] = "false"
        return environment

    def as_here(self, text: str) -> str:
        """A command or a file of a page, with what is other on this machine."""
        text = re.sub(r"\b(localhost|127\.0\.0\.1):9092\b", self.broker.bootstrap_servers, text)
        for usual, here in self.ports.items():
            text = re.sub(rf"\b(localhost|127\.0\.0\.1):{usual}\b", f"127.0.0.1:{here}", text)
        return re.sub(r"--until-idle [\d.]+", f"--until-idle {_IDLE_SECONDS}", text)

    def port_settings(self, *, taken: bool) -> str:
        """Assignments before a command: the ports that `as_here` says, or any where a process has them already."""
        settings = {"METRICS__PORT": "9095", "PREDICTOR__PORT": "9096"}
        if "metrics_port" in type(Settings().worker).model_fields:
            settings["WORKER__METRICS_PORT"] = "9097"
        return " ".join(f"PALIMPSEST_{name}={0 if taken else self.ports[usual]}" for name, usual in settings.items())

    def copy_of_the_repository(self, folder: Path) -> Path:
        """All of it but what is made there."""
        made = shutil.ignore_patterns(
            ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "runs", "data"
        )
        return Path(shutil.copytree(ROOT, folder, ignore=made, dirs_exist_ok=True))

    @contextmanager
    def own_topics(self) -> Iterator[None]:
        """What topics and groups a page makes are gone after it, so that the next page may use the same names."""
        settings = KafkaSettings(bootstrap_servers=self.broker.bootstrap_servers)
        with kafka_connection.admin(settings) as admin:
            topics, groups = set(admin.list_topics()), _groups(admin)
            try:
                yield
            finally:
                admin.delete_topics([name for name in set(admin.list_topics()) - topics if not name.startswith("__")])
                left = sorted(_groups(admin) - groups)
                if left:
                    admin.delete_groups(left)


def _groups(admin: object) -> set[str]:
    return {group["group_id"] for group in admin.list_groups()}  # type: ignore[attr-defined]


@contextmanager
def machine(broker: EmbeddedKafka, empty_database: Path, folder: Path) -> Iterator[PageMachine]:
    """The fork server runs for as long as this is open."""
    programs, server = folder / "bin", folder / "fork-server"
    programs.mkdir()
    shim = ROOT / "tests" / "docs" / "palimpsest_shim.py"
    direct = f'exec {sys.executable} -c "from deploy.cli import main; main()" "$@"'
    forked = f'[ -z "$PAGES_FORK_SERVER" ] || exec {sys.executable} -I -S {shim} "$@"'
    _write_program(programs / "palimpsest", f"{forked}\n{direct}")
    _write_program(programs / "python", f'exec {sys.executable} "$@"')
    _write_program(programs / "pytest", f'exec {sys.executable} -m pytest "$@"')
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.docs.fork_server", str(server)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield PageMachine(broker=broker, programs=programs, server=server, empty_database=empty_database)
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def _write_program(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)
