"""Nothing is unpickled: not in our code, and not in a learner that learns, registers and goes on."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.embedded_kafka import EmbeddedKafka
from model_store.mlflow_registry import MlflowRegistry
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_producer import produce
from producers.sample_stream import SampleStream
from producers.schedules.split import Split
from tests.consumers.versions_world import digits_classifier, register
from tests.deploy.command_line import events, palimpsest
from tests.deploy.streams import kafka, send, settings_file

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "model_store", "producers", "consumers", "deploy", "benchmarks")
# What they load may run code that lies in the file.
FORBIDDEN_MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "_marshal"),
    *("pickletools", "jsonpickle", "copyreg", "sklearn.externals"),
}
# (what it is called on, its name); None: on anything.
FORBIDDEN_CALLS = {
    *((module, "load") for module in ("torch", "torch.jit", "torch.package")),
    ("torch", "save"),
    *((None, name) for name in ("load_model", "read_pickle", "unsafe_load", "full_load", "unsafe_load_all")),
}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "_StrictLoader"}

# Put where Python imports it at the start of every process, also of children: each unpickled name becomes a line.
HOOK = """\
import json, os, sys

_log = os.open(os.environ["UNPICKLING_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _tell(**facts):
    os.write(_log, (json.dumps({"process": os.getpid(), "argv": sys.orig_argv, **facts}) + "\\n").encode())


def _hook(event, arguments):
    if event not in ("pickle.find_class", "marshal.load", "marshal.loads"):
        return
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        frames.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    # The import system reads compiled modules with marshal, from beside their sources.
    if event != "pickle.find_class" and frames and "importlib._bootstrap_external" in frames[0]:
        return
    names = [str(argument)[:80] for argument in arguments] if event == "pickle.find_class" else []
    _tell(event=event, names=names, frames=frames[:12])


_tell(event="installed")
sys.addaudithook(_hook)
"""


@pytest.fixture
def hooked(tmp_path: Path) -> dict[str, str]:
    """Variables for a process that is watched."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    return {"UNPICKLING_LOG": str(tmp_path / "unpickled.jsonl"), "PYTHONPATH": str(tmp_path / "hook")}


def told(hooked: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(hooked["UNPICKLING_LOG"]).read_text().splitlines()]


def test_the_hook_sees_what_is_unpickled(hooked: dict[str, str]) -> None:
    script = (
        "import collections, marshal, pickle\n"
        "pickle.loads(pickle.dumps(collections.OrderedDict()))\n"
        "pickle._loads(pickle.dumps(collections.Counter()))\n"
        "marshal.loads(marshal.dumps(1))\n"
    )
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **hooked}, check=True, timeout=60)
    seen = [(entry["event"], entry.get("names")) for entry in told(hooked)]
    assert seen == [
        ("installed", None),
        ("pickle.find_class", ["collections", "OrderedDict"]),
        ("pickle.find_class", ["collections", "Counter"]),
        ("marshal.loads", []),
    ]


@pytest.mark.kafka
def test_a_learner_its_registrar_and_its_next_start_unpickle_nothing(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path, hooked: dict[str, str]
) -> None:
    send(kafka_broker, stream_name, 200)
    settings = settings_file(tmp_path, kafka_broker, "registry: {every_records: 100, drain_seconds: 120}\n")
    learn = ["learn", "--stream", stream_name, "--state", tmp_path / "state", "--until-idle", 0.2]
    learn += ["--settings", settings, "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    for resumed in (False, True):
        done = palimpsest(*learn, env=hooked)
        assert done.returncode == 0, done.stderr
        lines = events(done.stderr)
        assert lines[0]["resumed"] is resumed
        if not resumed:
            assert [line["version"] for line in lines if line["event"] == "version"] != []
    MlflowRegistry(f"sqlite:///{tmp_path / 'mlflow.db'}").set_alias(stream_name, "champion", 1)
    predict = ["predict", "--stream", stream_name, "--input", f"{stream_name}.samples", "--models", tmp_path / "models"]
    predict += ["--settings", settings, "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    done = palimpsest(*predict, "--port", 0, "--until-idle", 1, env=hooked)
    assert done.returncode == 0, done.stderr
    assert events(done.stderr)[-1]["answered"] == 200
    seen = told(hooked)
    watched = {" ".join(entry["argv"]) for entry in seen}
    assert any("deploy.cli" in command for command in watched)
    assert any("model_store.registrar" in command for command in watched)
    assert any("model_store.version_fetcher" in command for command in watched)
    assert [entry for entry in seen if entry["event"] != "installed"] == []


@pytest.mark.kafka
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
def test_versions_that_are_consolidated_unpickle_nothing(
    kafka_broker: EmbeddedKafka, stream_name: str, tracking_uri: str, tmp_path: Path, hooked: dict[str, str]
) -> None:
    registry = MlflowRegistry(tracking_uri)
    for classes in ("012", "345"):
        register(registry, tmp_path, digits_classifier(tuple(classes)), stream_name)
    stream = SampleStream(open_dataset("digits", DatasetOptions()), Split(), records=200, unlabelled_share=1.0)
    produce(stream, stream_name=stream_name, kafka=kafka(kafka_broker))
    settings = settings_file(tmp_path, kafka_broker, "consolidation: {min_unlabelled: 100, epochs: 1}\n")
    given = ["--old", f"models:/{stream_name}/1", "--new", f"models:/{stream_name}/2", "--settings", settings]
    given += ["--tracking-uri", tracking_uri, "--work", tmp_path / "work"]
    done = palimpsest("consolidate", *given, env=hooked)
    assert done.returncode == 0, done.stderr
    assert f"models:/{stream_name}/3 is registered" in done.stdout
    assert [entry for entry in told(hooked) if entry["event"] != "installed"] == []


# By reading our code


def files() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def offences(tree: ast.Module) -> Iterator[str]:
    """What in this module could unpickle."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            case ast.Call():
                names = []
                yield from _offence_of_call(node)
            case _:
                continue
        for name in names:
            yield from _offence_of_import(node.lineno, name)


def _offence_of_import(line: int, module: str) -> Iterator[str]:
    if module.split(".")[0] in FORBIDDEN_MODULES or module in FORBIDDEN_MODULES:
        yield f"line {line}: import of {module}"


def _offence_of_call(node: ast.Call) -> Iterator[str]:
    on, name = "", ""
    if isinstance(node.func, ast.Attribute):
        on, name = ast.unparse(node.func.value), node.func.attr
    elif isinstance(node.func, ast.Name):
        name = node.func.id
    if (on, name) in FORBIDDEN_CALLS or (None, name) in FORBIDDEN_CALLS:
        yield f"line {node.lineno}: {ast.unparse(node.func)}"
    if (on, name) in {("yaml", "load"), ("yaml", "load_all")}:
        loader = (
            node.args[1] if len(node.args) > 1 else next((k.value for k in node.keywords if k.arg == "Loader"), None)
        )
        if loader is None or ast.unparse(loader).split(".")[-1] not in SAFE_LOADERS:
            yield f"line {node.lineno}: {on}.{name} without a safe loader"
    for keyword in node.keywords:
        is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg == "allow_pickle" and not is_false:
            yield f"line {node.lineno}: allow_pickle"
        if keyword.arg == "weights_only" and is_false:
            yield f"line {node.lineno}: weights_only=False"
    if name in ("__import__", "import_module") and node.args and isinstance(node.args[0], ast.Constant):
        yield from _offence_of_import(node.lineno, str(node.args[0].value))


def test_no_file_of_ours_could() -> None:
    found = {
        str(file.relative_to(ROOT)): offence
        for file in files()
        for offence in offences(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_our_own_yaml_loader_is_a_safe_one() -> None:
    import yaml

    from deploy.settings import _StrictLoader

    assert issubclass(_StrictLoader, yaml.SafeLoader)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from marshal import loads",
        "import torch; torch.load(file)",
        "import numpy as np; np.load(file, allow_pickle=True)",
        "import numpy as np; np.load(file, allow_pickle=flag)",
        "import mlflow; mlflow.pytorch.load_model(uri)",
        "from mlflow.pyfunc import load_model; load_model(uri)",
        "import pandas; pandas.read_pickle(file)",
        "import yaml; yaml.load(text)",
        "import yaml; yaml.load(text, Loader=yaml.FullLoader)",
        "import yaml; yaml.unsafe_load(text)",
        "import importlib; importlib.import_module('dill')",
        "import torch; torch.hub.load_state_dict_from_url(url, weights_only=False)",
    ],
)
def test_what_could_is_found(line: str) -> None:
    assert list(offences(ast.parse(line))) != []


@pytest.mark.parametrize(
    "line",
    ["import json; json.load(file)", "import yaml; yaml.load(text, yaml.SafeLoader)", "import yaml; yaml.safe_load(t)"],
)
def test_what_could_not_is_not_found(line: str) -> None:
    assert list(offences(ast.parse(line))) == []
