"""What only MLflow can get wrong: the artifact, metrics over time, noise, servers that are away."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy.local_port import free_port
from model_store.mlflow_registry import MlflowRegistry, metric_name
from model_store.registry import MetricPoint, RegistryRefused, RegistryUnavailable, ServableBroken
from model_store.tracking_uri import sqlite_file
from pipeline.classifier import Classifier
from pipeline.restructuring.grown_network import grown
from pipeline.user_error import UserError
from tests.model_store.tiny_servable import CLASSES, payload, request, tiny_classifier

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

PROJECT = Path(__file__).parent.parent.parent


@pytest.fixture
def registry(tracking_uri: str) -> MlflowRegistry:
    return MlflowRegistry(tracking_uri)


@pytest.fixture
def client(tracking_uri: str) -> Any:
    from mlflow.tracking import MlflowClient  # only now: its first import is mlflow_registry's

    return MlflowClient(tracking_uri)


def experiment_id(client: Any) -> str:
    experiment = client.get_experiment_by_name("pets")
    assert experiment is not None
    return str(experiment.experiment_id)


@pytest.mark.parametrize("has_grown", [False, True])
def test_the_artifact_opens_and_predicts_without_this_program(
    has_grown: bool, registry: MlflowRegistry, tracking_uri: str, tmp_path: Path
) -> None:
    if has_grown:  # by a sub-module that it does not hear yet: it says the same
        plain = tiny_classifier()
        network = grown(plain.network, plain.network)
        Classifier(network, CLASSES, plain.spec, plain.input_settings).save(tmp_path / "servable")
    registry.register(request(tmp_path / "servable"))
    rows = {"good": payload(0.0, 3.0).hex(), "other": payload(3.0, 0.0).hex(), "bad": b"no array".hex()}
    program = """
import json, sys
payloads = json.loads(sys.argv[2])
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
frame = pandas.DataFrame(
    {"payload": [bytes.fromhex(text) for text in payloads.values()], "content_type": ["application/x-npy"] * 3}
)
answer = mlflow.pyfunc.load_model("models:/pets/1").predict(frame)
import pipeline.classifier
print(json.dumps([json.loads(answer.to_json(orient="records")), pipeline.classifier.__file__]))
"""
    # -I: neither the working directory nor PYTHONPATH is searched; the finder of an editable install is taken away.
    isolate = (
        "import sys; sys.path = [path for path in sys.path if path != sys.argv[3]]\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", isolate + program, tracking_uri, json.dumps(rows), str(PROJECT)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={"MLFLOW_DISABLE_TELEMETRY": "true", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (good, other, bad), source = json.loads(done.stdout.splitlines()[-1])
    assert not Path(source).is_relative_to(PROJECT / "pipeline")
    assert good["label"] == "köln"
    assert good["probability"] == pytest.approx(0.952574, abs=1e-6)  # 1 / (1 + e^-3)
    assert json.loads(good["probabilities"])["no"] == pytest.approx(0.047426, abs=1e-6)
    assert good["error"] is None
    assert other["label"] == "no"
    assert bad["label"] is None
    assert bad["error"].startswith("broken_array: ")


def test_nothing_in_the_artifact_is_pickled_and_all_of_it_lies_beside_the_database(
    registry: MlflowRegistry, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    wanted = request(tmp_path / "servable")
    version = registry.register(wanted)
    assert list(elsewhere.iterdir()) == []
    database = sqlite_file(tracking_uri)
    assert database is not None
    files = [path for path in (database.parent / "mlartifacts" / "pets").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"MLmodel", "weights.safetensors", "servable.json", "provenance.json", "servable_pyfunc.py"} <= names
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".bin", ".pyc"}]
    (model_file,) = (path for path in files if path.name == "MLmodel")
    text = model_file.read_text()
    assert "cloudpickle_version" not in text or "python_model.pkl" not in text
    assert f"run_id: {version.run_id}" in text
    requirements = (model_file.parent / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in requirements)
    assert (model_file.parent / "artifacts" / "servable" / "weights.safetensors").read_bytes() == (
        wanted.servable / "weights.safetensors"
    ).read_bytes()


def test_metrics_over_time_are_one_run_a_state(registry: MlflowRegistry, client: Any, tmp_path: Path) -> None:
    first = registry.register(request(tmp_path / "servable", 1))
    second = registry.register(request(tmp_path / "servable", 2))
    registry.register(request(tmp_path / "servable", 2))
    registry.log_metrics("pets", "0123456789abcdef", request(tmp_path / "servable", 2).metrics)
    other = registry.register(request(tmp_path / "servable", 3, state_id="fedcba"))
    assert first.run_id is not None
    assert first.run_id == second.run_id != other.run_id
    history = client.get_metric_history(first.run_id, "average_forgetting_ratio")
    assert [(point.step, point.value) for point in history] == [(100, 0.1), (200, 0.2)]
    (name,) = (name for name in client.get_run(first.run_id).data.metrics if name.startswith("class_"))
    assert name == metric_name("class_accuracy_ratio/köln!")


def test_more_points_than_one_request_takes(registry: MlflowRegistry, client: Any) -> None:
    points = [
        MetricPoint(name=f"m{number % 3}", value=number, step=number, timestamp_ms=number) for number in range(2500)
    ]
    registry.log_metrics("pets", "s", points)
    registry.log_metrics("pets", "s", points[:10])
    (run,) = client.search_runs([experiment_id(client)])
    assert sum(len(client.get_metric_history(run.info.run_id, f"m{number}")) for number in range(3)) == 2500


@pytest.mark.parametrize("name", ["a", "class_accuracy_ratio/7", "a b/c-d_e.f"])
def test_good_metric_names_stay(name: str) -> None:
    assert metric_name(name) == name


def test_bad_metric_names_become_good_and_stay_different(registry: MlflowRegistry) -> None:
    names = [
        "a/köln",
        "a/k_ln",
        "a//b",
        "a/b",
        "/a",
        "a/../b",
        "../x",
        "a:b",
        "x" * 300,
        "x" * 301,
        "a/\x00",
        "a/'",
        "a/.",
        "🦊",
    ]
    changed = [metric_name(name) for name in names]
    assert len(set(changed)) == len(names)
    registry.log_metrics("pets", "s", [MetricPoint(name=name, value=1.0, step=1, timestamp_ms=1) for name in names])


def test_killed_between_artifact_and_version(
    registry: MlflowRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    wanted = request(tmp_path / "servable")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.tracking.MlflowClient.create_model_version", kill)
        with pytest.raises(Killed):
            registry.register(wanted)
    assert registry.versions("pets") == []
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.tracking.MlflowClient.set_registered_model_alias", kill)
        with pytest.raises(Killed):
            registry.register(wanted)
    assert [entry.aliases for entry in registry.versions("pets")] == [frozenset()]
    assert registry.register(wanted).aliases == {"challenger"}
    assert len(registry.versions("pets")) == 1


def test_killed_before_it_was_told_who_supersedes(
    registry: MlflowRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    for number in (1, 2, 3):
        registry.register(request(tmp_path / "servable", number))
    back = request(tmp_path / "servable", 4, records_trained=100, goes_back=True)
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.tracking.MlflowClient.set_model_version_tag", kill)
        with pytest.raises(Killed):
            registry.register(back)
    assert [entry.superseded_by for entry in registry.versions("pets")] == [None] * 4
    registry.register(request(tmp_path / "servable", 5, records_trained=500))
    assert registry.register(back).parent_version == 1
    assert [entry.superseded_by for entry in registry.versions("pets")] == [None, 4, 4, None, None]


def test_a_version_without_a_servable_holds_none(registry: MlflowRegistry, tracking_uri: str, tmp_path: Path) -> None:
    version = registry.register(request(tmp_path / "servable"))
    database = sqlite_file(tracking_uri)
    assert database is not None
    (found,) = (database.parent / "mlartifacts").rglob("artifacts/servable")
    (found / "weights.safetensors").unlink()
    with pytest.raises(ServableBroken, match=r"has no weights\.safetensors"):
        registry.fetch_servable(version, tmp_path / "fetched")
    shutil.rmtree(found)
    with pytest.raises(ServableBroken, match="models:/pets/1 holds "):
        registry.fetch_servable(version, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_deleted_experiment_is_refused_clearly(registry: MlflowRegistry, client: Any, tmp_path: Path) -> None:
    registry.register(request(tmp_path / "servable", 1))
    client.delete_experiment(experiment_id(client))
    with pytest.raises(RegistryRefused, match="'pets' was deleted in MLflow"):
        registry.register(request(tmp_path / "servable", 2))


def test_a_server_that_is_away(tmp_path: Path) -> None:
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    registry = MlflowRegistry(uri)
    for ask in (
        lambda: registry.register(request(tmp_path / "servable")),
        lambda: registry.versions("pets"),
        lambda: registry.log_metrics("pets", "s", []),
    ):
        with pytest.raises(RegistryUnavailable) as caught:
            ask()
        assert "secret" not in str(caught.value)


class Answering(BaseHTTPRequestHandler):
    status = 503

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "error"),
    [(500, RegistryUnavailable), (503, RegistryUnavailable), (403, RegistryRefused), (404, RegistryRefused)],
)
def test_a_server_in_trouble(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception]
) -> None:
    monkeypatch.setattr(Answering, "status", status)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = MlflowRegistry(f"http://127.0.0.1:{server.server_address[1]}")
    with pytest.raises(error):
        registry.versions("pets")


def test_a_database_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    with pytest.raises((RegistryRefused, RegistryUnavailable), match="not a database"):
        MlflowRegistry(f"sqlite:///{tmp_path / 'mlflow.db'}").versions("pets")


def test_a_folder_that_is_not_there_yet_is_made(tmp_path: Path, empty_database: Path) -> None:
    registry = MlflowRegistry(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mlflow.db").write_bytes(empty_database.read_bytes())
    assert registry.versions("pets") == []


@pytest.mark.parametrize(
    "uri", ["", "ftp://x/y", "ht tp://x", "http://", "http://h:port", "/a/folder", "file:///x", "sqlite://"]
)
def test_a_wrong_tracking_uri(uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking URI .* cannot be used"):
        MlflowRegistry(uri)


def test_a_sqlite_file_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for uri in (f"sqlite:///{tmp_path}", f"sqlite:///{tmp_path}/file/mlflow.db"):
        with pytest.raises(UserError, match="folder"):
            MlflowRegistry(uri)


def test_a_wrong_uri_s_password_is_not_printed() -> None:
    with pytest.raises(UserError) as caught:
        MlflowRegistry("oracle://me:secret@host/db")
    assert "secret" not in str(caught.value)
    assert "me:***@host" in str(caught.value)


def test_several_processes_that_come_to_a_new_database_at_once(tmp_path: Path) -> None:
    """The registrar makes its tables while somebody looks at it: MLflow itself fails then."""
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    program = (
        "import sys; from model_store.mlflow_registry import MlflowRegistry; print('ready', flush=True); "
        "sys.stdin.readline(); print(MlflowRegistry(sys.argv[1]).versions('pets'))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, uri],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in processes]
    assert [(process.returncode, out) for process, (out, _) in zip(processes, said, strict=True)] == [(0, "[]\n")] * 3
