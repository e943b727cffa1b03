"""The services of compose.yaml run together as it says, without Docker: real Kafka, Postgres, MLflow and Prometheus,
and our three processes with the demo's stream, until a version is promoted and answers.

What is not its images': Kafka comes from the embedded broker's jars with the same settings, Postgres and Prometheus
from Debian, and Grafana does not run.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deploy.kafka_properties import _OURS
from tests.deploy.compose_project import DEPLOY, services
from tests.deploy.without_docker import ROOT, Network, shown_at_failure, wait_until
from tests.system_package import require_program

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.timeout(900)]

# Variables that the image sets.
_IMAGE = dict(
    pair
    for block in re.findall(r"ENV PATH=.*?\nWORKDIR", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.DOTALL)
    for pair in re.findall(r"([A-Z_]+)=([^\s\\]+)", block)
    if pair[0] != "PATH"
)
_BROKER = """
import json, sys
from pathlib import Path
from deploy.embedded_kafka import EmbeddedKafka
broker = EmbeddedKafka(Path(sys.argv[2]), port=9092, extra_properties=json.loads(sys.argv[3]))
broker.start() if sys.argv[1] == "start" else broker.stop()
"""
# The image's program is not among the embedded broker's jars: this one takes the options that it takes.
_KAFKA_TOPICS = """#!{python}
import argparse
from kafka.admin import KafkaAdminClient
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--create", "--if-not-exists", action="append_const", dest="flags", const=True)
parser.add_argument("--config", action="append")
for name in ("--bootstrap-server", "--topic", "--partitions", "--replication-factor"):
    parser.add_argument(name, required=True)
given = parser.parse_args()
admin = KafkaAdminClient(bootstrap_servers=given.bootstrap_server)
configs = dict(one.split("=", 1) for one in given.config)
shape = dict(num_partitions=int(given.partitions), replication_factor=int(given.replication_factor), configs=configs)
admin.create_topics({{given.topic: shape}})
print("made", given.topic)
"""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("a network of its own needs root: NOT TESTED HERE")
    with shown_at_failure(tmp_path), Network(tmp_path, services()) as network:
        yield network


def test_the_services_run_together(network: Network, tmp_path: Path) -> None:
    _start_kafka(network, tmp_path)
    try:
        _run_all(network, tmp_path)
    finally:
        network.run([sys.executable, "-c", _BROKER, "stop", tmp_path / "kafka", "{}"], cwd=ROOT)


def _start_kafka(network: Network, folder: Path) -> None:
    variables = services()["kafka"]["environment"]
    properties = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in variables.items()
        if name != "KAFKA_HEAP_OPTS"
    }
    ours = {name: value for name, value in properties.items() if name not in _OURS and not name.startswith("listener")}
    assert len(ours) >= 8
    network.run([sys.executable, "-c", _BROKER, "start", folder / "kafka", json.dumps(ours)], cwd=ROOT)
    program = folder / "bin" / "kafka-topics.sh"
    program.parent.mkdir()
    program.write_text(_KAFKA_TOPICS.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    made = network.run(network.walled(services()["topics"], {"/opt/kafka/bin": program.parent}, extra={}))
    assert made.stdout.split() == ["made", "digits.samples", "made", "digits.unlabelled", "made", "digits.requests"]


def _run_all(network: Network, folder: Path) -> None:
    password = folder / "postgres_password"
    password.write_text("hush", encoding="utf-8")
    _start_postgres(network, folder, password)
    volumes = {name: folder / name for name in ("artifacts", "state", "models", "prometheus")}
    for volume in volumes.values():
        volume.mkdir()
    settings = {"/etc/palimpsest/settings.yaml": DEPLOY / "compose.settings.yaml"}

    def start(name: str, mounts: dict[str, Path]) -> subprocess.Popen[bytes]:
        service = services()[name]
        for volume in service.get("volumes", []):
            source = volumes.get(volume["source"], Path(volume["source"]))
            mounts[volume["target"]] = source
        return network.start(network.walled(service, mounts, extra=_IMAGE), folder / f"{name}.log")

    start("mlflow", {"/run/secrets/postgres_password": password})
    running = {name: start(name, dict(settings)) for name in ("learner", "worker", "predictor", "demo")}
    prometheus = {**services()["prometheus"], "entrypoint": [require_program("prometheus", package="prometheus")]}
    mounts = {"/etc/prometheus": DEPLOY / "prometheus", "/prometheus": volumes["prometheus"]}
    network.start(network.walled(prometheus, mounts, extra={}), folder / "prometheus.log")
    search = "5000/api/2.0/mlflow/registered-models/search"
    wait_until("MLflow answers to its name", lambda: _answers(network, f"http://mlflow:{search}"), 180)
    assert not _answers(network, f"http://postgres:{search}"), "and to that of no other"
    for name in ("learner", "worker", "predictor"):
        wait_until(f"{name} is healthy", partial(_is_healthy, network, services()[name]), 180)
    wait_until("a version is promoted and served", lambda: _answers(network, "http://predictor:9096/readyz"), 400)
    model = json.loads(_asked(network, "http://predictor:9096/model"))
    assert model["role"] == "champion"
    assert int(model["version"]) >= 1
    wait_until("Prometheus sees the three", lambda: _up(network) == {"learner", "worker", "predictor"}, 60)
    assert all(running[name].poll() is None for name in ("learner", "worker", "predictor"))
    _show_memory(running)
    for name in ("demo", "predictor", "worker", "learner"):
        _terminate(running[name])
        assert running[name].wait(90) in ((0,) if name != "demo" else (0, 130)), name
    assert list((volumes["state"] / "digits" / "snapshots").iterdir())


def _start_postgres(network: Network, folder: Path, password: Path) -> None:
    require_program("psql", package="postgresql")
    (programs,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
    data = folder / "postgres"
    data.mkdir()
    # Postgres will not be root, nor somebody whom the machine does not know; and the folder is still its own.
    user = pwd.getpwnam("postgres")
    wall = [require_program("bwrap", package="bubblewrap"), "--dev-bind", "/", "/", "--unshare-user"]
    wall += ["--uid", str(user.pw_uid), "--gid", str(user.pw_gid), "--"]
    first = ["--auth=scram-sha-256", "--username=mlflow", f"--pwfile={password}"]
    network.run([*wall, programs / "initdb", *first, data])
    network.start([*wall, programs / "postgres", "-D", data, "-k", data, "-h", "127.0.0.1"], folder / "postgres.log")
    _, *ready = services()["postgres"]["healthcheck"]["test"]
    wait_until("Postgres", lambda: _ends_well(network, [*ready, "--host=127.0.0.1"]), 60)
    network.run(
        ["createdb", "--host=127.0.0.1", "--username=mlflow", "mlflow"], env={**os.environ, "PGPASSWORD": "hush"}
    )


def _is_healthy(network: Network, service: dict[str, Any]) -> bool:
    """By its own health check, run as a process of that container."""
    _, *test = service["healthcheck"]["test"]
    return _ends_well(network, network.walled({**service, "entrypoint": [], "command": test}, {}, extra=_IMAGE))


def _ends_well(network: Network, command: Sequence[str]) -> bool:
    try:
        network.run(command)
    except subprocess.CalledProcessError:
        return False
    return True


_GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


def _asked(network: Network, url: str) -> str:
    """What is answered to the name in the URL, which in the network is 127.0.0.1."""
    host, port, path = re.fullmatch(r"http://([a-z.0-9]+):(\d+)(.*)", url).groups()  # type: ignore[union-attr]
    request = f"urllib.request.Request('http://127.0.0.1:{port}{path}', headers={{'Host': '{host}:{port}'}})"
    return network.run([sys.executable, "-c", _GET.replace("sys.argv[1]", request)]).stdout


def _answers(network: Network, url: str) -> bool:
    try:
        _asked(network, url)
    except subprocess.CalledProcessError:
        return False
    return True


def _up(network: Network) -> set[str]:
    try:
        found = json.loads(_asked(network, "http://prometheus:9090/api/v1/query?query=up==1"))
    except subprocess.CalledProcessError:
        return set()
    jobs = {result["metric"]["job"] for result in found["data"]["result"]}
    return {job.removeprefix("palimpsest-") for job in jobs if job.startswith("palimpsest-")}


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [pid, *(below for child in children for below in _descendants(int(child)))]


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM as Docker sends it: to the first process within, which bubblewrap has started."""
    for pid in _descendants(process.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"bwrap" not in command[0] and b"nsenter" not in command[0]:
            os.kill(pid, signal.SIGTERM)
            return


def _show_memory(running: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, process in running.items():
        if process.poll() is not None:
            continue
        resident = 0
        for pid in _descendants(process.pid):
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            resident += int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]
        print(f"{name}: {resident // 1024} MiB")
