"""`palimpsest consolidate --old --new` on a real broker and a real MLflow."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from consumers import topics
from deploy.commands.consolidate import command
from deploy.embedded_kafka import EmbeddedKafka
from deploy.exit_codes import exit_code, one_line
from deploy.local_port import free_port
from model_store.mlflow_registry import MlflowRegistry
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_producer import produce
from producers.sample_stream import SampleStream
from producers.schedules.split import Split
from tests.consumers.versions_world import digits_classifier, register
from tests.deploy.command_line import Running, palimpsest
from tests.deploy.streams import kafka, learn, settings_file
from tests.mlflow_database import mlflow_at
from tests.model_store.tiny_servable import tiny_classifier

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

SETTINGS = "consolidation: {min_unlabelled: 100, batch_size: 32}\n"


def send(broker: EmbeddedKafka, stream_name: str, records: int, share: float) -> None:
    """Five steps of two digits."""
    dataset = open_dataset("digits", DatasetOptions())
    stream = SampleStream(dataset, Split(), seed=0, records=records, unlabelled_share=share)
    produce(stream, stream_name=stream_name, kafka=kafka(broker))


def two_versions(tracking_uri: str, folder: Path, name: str) -> None:
    registry = MlflowRegistry(tracking_uri)
    for number, classes in enumerate(("012", "345")):
        register(registry, folder, digits_classifier(tuple(classes), seed=number), name)


@pytest.mark.kafka
def test_versions_that_a_learner_registered(
    kafka_broker: EmbeddedKafka, stream_name: str, tracking_uri: str, tmp_path: Path
) -> None:
    """No --unlabelled: the topic is that of the stream which the newer one was learnt from."""
    send(kafka_broker, stream_name, 900, 0.4)
    registry = f"registry: {{tracking_uri: '{tracking_uri}', every_records: 150}}\n"
    file = settings_file(tmp_path, kafka_broker, SETTINGS + registry)
    for _ in range(3):  # each ends with a version
        learn(stream_name, tmp_path / "state", file, max_records=300)
    versions = MlflowRegistry(tracking_uri).versions(stream_name)
    assert len(versions) >= 3
    known = [json.loads(version.tags["palimpsest.classes"]) for version in versions]
    assert 0 < len(known[0]) < len(known[-1]) == 10
    old, new = f"models:/{stream_name}/1", f"models:/{stream_name}@challenger"
    given = ["--old", old, "--new", new, "--settings", file, "--work", tmp_path / "work", "--epochs", "5"]
    done = palimpsest("consolidate", *given)
    assert done.returncode == 0, done.stderr
    newest = len(versions) + 1
    assert done.stdout.splitlines()[:2] == [
        f"{old} ({len(known[0])} classes) and models:/{stream_name}/{newest - 1} (10, {len(known[0])} of them known to "
        f"both); unlabelled records of {stream_name}.unlabelled",
        "versions carry no records of their classes, so without calibrated, gated, replay_weight: plain DMC",
    ]
    assert done.stdout.splitlines()[2] == "it is not judged: versions carry no held-out samples"
    assert done.stdout.splitlines()[3].startswith(f"models:/{stream_name}/{newest} is registered: 10 classes, from ")
    version = MlflowRegistry(tracking_uri).find(stream_name, newest)
    assert version is not None
    assert version.tags["palimpsest.old_version"] == old
    assert version.tags["palimpsest.new_version"] == f"models:/{stream_name}/{newest - 1}"
    assert sorted(json.loads(version.tags["palimpsest.classes"])) == list("0123456789")
    import mlflow
    import pandas as pd  # type: ignore[import-untyped]

    with mlflow_at(tracking_uri):
        answer = mlflow.pyfunc.load_model(f"models:/{stream_name}/{newest}").predict(
            pd.DataFrame({"payload": [b"none"], "content_type": ["image/png"]})
        )
    assert answer["error"][0].startswith("broken_image")


@pytest.mark.kafka
def test_interrupted_it_exits_130_and_the_same_command_goes_on(
    kafka_broker: EmbeddedKafka, stream_name: str, tracking_uri: str, tmp_path: Path
) -> None:
    two_versions(tracking_uri, tmp_path, stream_name)
    send(kafka_broker, stream_name, 900, 1.0)
    file = settings_file(tmp_path, kafka_broker, SETTINGS)
    given = ["--old", f"models:/{stream_name}/1", "--new", f"models:/{stream_name}/2", "--settings", file]
    # its first line comes after three seconds, and it must not have ended by then on a fast machine
    given += ["--tracking-uri", tracking_uri, "--work", tmp_path / "work", "--epochs", "500"]
    with Running("consolidate", *given) as running:
        running.wait_for(lambda lines: any(line.startswith("student: ") for line in lines))
        assert "s left" in next(line for line in running.lines if line.startswith("student: "))
        running.signal(signal.SIGINT)
        assert running.end() == 130
        assert running.lines[-1] == "stopped; the same command goes on from here"
    (begun,) = (tmp_path / "work").glob("*-1-*-2-*")
    assert MlflowRegistry(tracking_uri).find(stream_name, 3) is None
    # of the brokers nothing but the topic is asked: the records were counted when it first began
    done = palimpsest("consolidate", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"models:/{stream_name}/3 is registered: 6 classes")
    assert not begun.exists()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["lock"]


@pytest.mark.kafka
def test_refusals_are_one_line_and_a_code_of_their_own(
    kafka_broker: EmbeddedKafka, stream_name: str, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_versions(tracking_uri, tmp_path, stream_name)
    register(MlflowRegistry(tracking_uri), tmp_path, tiny_classifier(), "pets")
    topics.ensure_source_topics(kafka(kafka_broker), stream_name)
    file = settings_file(tmp_path, kafka_broker, SETTINGS)
    one, two = f"models:/{stream_name}/1", f"models:/{stream_name}/2"

    def ends(old: str, new: str, *more: object) -> tuple[int, str]:
        given = ["--old", old, "--new", new, "--settings", file, "--tracking-uri", tracking_uri]
        done = CliRunner().invoke(command, [*map(str, given), "--work", str(tmp_path / "work"), *map(str, more)])
        if isinstance(done.exception, Exception):  # as deploy/cli.py ends it
            return exit_code(done.exception) or 1, one_line(done.exception)
        (line,) = done.stderr.splitlines()
        return done.exit_code, line

    code, line = ends(one, two)
    assert (code, line.partition(": 0 ")[0]) == (3, "palimpsest: nothing is registered")
    assert "unlabelled rows are too few for a good student, at least 100 are wanted" in line
    with monkeypatch.context() as patch:
        patch.setenv("PALIMPSEST_CONSOLIDATION__GATED", "true")
        patch.setenv("PALIMPSEST_CONSOLIDATION__MIN_UNLABELLED", "1")
        code, line = ends(one, two)
    assert code == 3
    assert line.endswith("two ready teachers have none: set gated to false and specialist_hears to new")
    code, line = ends(one, two, "--unlabelled", "nowhere")
    assert (code, "topic nowhere does not exist" in line) == (2, True)
    code, line = ends(one, f"models:/{stream_name}/9")
    assert (code, "has no version 9; its newest versions are 2, 1" in line) == (2, True)
    code, line = ends(one, "models:/pets/1")
    assert (code, "name two versions of one kind of input" in line) == (2, True)
    code, line = ends(one, "digits/3")
    assert (code, "names no version" in line) == (2, True)
    code, line = ends(one, two, "--register", "a/b")
    assert (code, "cannot name a model" in line) == (2, True)
    code, line = ends(one, two, "--bootstrap-servers", f"127.0.0.1:{free_port()}")
    assert code == 2
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, line = ends(one, two, "--tracking-uri", f"http://127.0.0.1:{free_port()}")
    assert code == 6
    assert line.endswith("the same command goes on from here once it answers")
    code, line = ends(one, two, "--tracking-uri", f"sqlite:///{tmp_path}/none.db")
    assert (code, f"there is no MLflow database {tmp_path}/none.db" in line) == (2, True)
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "file").touch()
    code, line = ends(one, two, "--work", tmp_path / "file" / "work")
    assert (code, line.endswith("give another --work")) == (2, True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "give --stream and --state of a learner, or --old and --new of two registered versions"),
        (["--state", "s"], "give --stream and --state of a learner"),
        (["--stream", "s"], "give --stream and --state of a learner"),
        (["--old", "models:/s/1"], "--old needs --new: a version, such as models:/digits/3"),
        (["--new", "models:/s/1"], "--new needs --old"),
        (["--register", "s", "--stream", "s"], "--register needs --old and --new"),
        (
            ["--old", "models:/s/1", "--new", "models:/s/2", "--state", "s"],
            "--old is for two registered versions, --state for a learner's state: give one of them",
        ),
        (
            ["--old", "models:/s/1", "--new", "models:/s/2", "--base", "3"],
            "--old is for two registered versions, --base for a learner's state",
        ),
        (["--work", "w", "--stream", "s", "--state", "s"], "--work is for two registered versions"),
    ],
)
def test_options_that_do_not_go_together(given: list[str], says: str) -> None:
    done = CliRunner().invoke(command, given)
    assert done.exit_code == 2
    assert f"Error: {says}" in done.stderr


def test_without_a_tracking_uri_it_is_the_file_by_the_work_folder(empty_database: Path, tmp_path: Path) -> None:
    """Where a learner whose state is `runs/NAME` has put it."""
    here = {"PYTHONPATH": str(Path(__file__).parents[2])}  # this program, whatever is installed
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    done = palimpsest("consolidate", "--old", "models:/s/1", "--new", "models:/s/2", cwd=tmp_path, env=here)
    assert done.returncode == 2
    assert "models:/s/1: there is no model 's' in this MLflow" in done.stderr
    assert (tmp_path / "runs" / "consolidations").is_dir()
