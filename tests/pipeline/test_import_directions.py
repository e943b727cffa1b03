"""Imports point towards `pipeline/`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "model_store", "producers", "consumers", "deploy", "benchmarks")
# What each may import of ours, besides itself; deploy and benchmarks, which put things together, may import all.
ALLOWED = {
    "pipeline": set[str](),
    "model_store": {"pipeline"},
    "producers": {"pipeline", "consumers"},
    "consumers": {"pipeline", "model_store"},
}
# Of consumers, producers need the connection alone: its client, its settings, the names of topics.
CONNECTION = ("consumers.kafka_connection", "consumers.kafka_settings", "consumers.topics")
SERVICES = {"kafka", "mlflow", "prometheus_client", "confluent_kafka", "avalanche"}


@cache
def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imported(file: Path) -> Iterator[str]:
    """Full names of modules, also of those imported inside functions; `from a import b` gives a and a.b."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_in_one_direction(package: str) -> None:
    forbidden = set(PACKAGES) - {package} - ALLOWED[package]
    wrong = {
        (str(file.relative_to(ROOT)), name)
        for file in files(package)
        for name in imported(file)
        if name.split(".")[0] in forbidden
    }
    assert not wrong


def test_the_core_knows_no_kafka_no_mlflow_and_no_prometheus() -> None:
    wrong = {
        (file.name, name) for file in files("pipeline") for name in imported(file) if name.split(".")[0] in SERVICES
    }
    assert not wrong


def test_producers_need_the_connection_of_consumers_and_nothing_else() -> None:
    wrong = {
        (file.name, name)
        for file in files("producers")
        for name in imported(file)
        if name.startswith("consumers.") and not name.startswith(CONNECTION)
    }
    assert not wrong


def test_metrics_are_named_in_files_of_their_own_and_kafka_clients_made_in_one() -> None:
    consumers = {file.name: set(imported(file)) for file in files("consumers")}
    with_prometheus = {
        name for name, modules in consumers.items() if any(m.startswith("prometheus_client") for m in modules)
    }
    assert {"metrics.py", "metrics_server.py"} <= with_prometheus
    assert all("metrics" in name for name in with_prometheus), with_prometheus  # what is measured is told them
    for package in ALLOWED:  # deploy's broker asks itself whether it is up
        for file in files(package):
            made = {
                node.func.id
                for node in ast.walk(parsed(file))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            assert not made & {"KafkaConsumer", "KafkaProducer", "KafkaAdminClient"}, file


def test_importing_the_core_brings_no_services_along() -> None:
    """Every module of pipeline, in a fresh interpreter: what is in sys.modules then."""
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files("pipeline")
    ]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    loaded = set(done.stdout.split())
    assert "pipeline" in loaded
    ours = set(PACKAGES) - {"pipeline"}
    assert not loaded & (SERVICES | ours)
