"""What keeps `palimpsest learn` from starting: a `UserError`, which deploy/cli.py turns into one line and code 2."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from consumers.kafka_settings import KafkaSettings
from consumers.state_lock import LockStopped, exclusive_lock
from deploy.commands.learn import command
from deploy.embedded_kafka import EmbeddedKafka
from deploy.learning import open_learner
from deploy.settings import Settings
from pipeline.user_error import UserError
from tests.deploy.command_line import DEADLINE_SECONDS, Running
from tests.deploy.streams import send, settings_file

pytestmark = pytest.mark.kafka


@pytest.fixture(autouse=True)
def _process_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets up logging and torch for a process of its own."""
    for name in [name for name in os.environ if name.startswith(("PALIMPSEST_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level, deterministic = root.handlers[:], root.level, torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def learn(*arguments: object) -> str:
    """The one line that it ends with, or a failed test."""
    result = CliRunner().invoke(command, [str(argument) for argument in (*arguments, "--until-idle", 0.2)])
    assert isinstance(result.exception, UserError), result.output
    assert len(str(result.exception).splitlines()) == 1
    return str(result.exception)


@pytest.fixture(scope="module")
def learnt(kafka_broker: EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A stream that was learnt: its name, its state, and the settings."""
    folder = tmp_path_factory.mktemp("learnt")
    name = f"learnt-{folder.name}"
    send(kafka_broker, name, 40)
    file = settings_file(folder, kafka_broker, "registry: {enabled: false}\n")
    arguments = ["--stream", name, "--state", str(folder / "state"), "--settings", str(file), "--until-idle", "0.2"]
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    assert result.exit_code == 0, result.output
    return name, folder / "state", file


def test_a_missing_topic(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> None:
    line = learn(
        "--stream", stream_name, "--state", tmp_path / "s", "--settings", settings_file(tmp_path, kafka_broker)
    )
    assert line.startswith(f"topic {stream_name}.samples does not exist at {kafka_broker.bootstrap_servers}")
    assert f"palimpsest produce --stream {stream_name}" in line


@pytest.mark.parametrize("uri", ["foo://x", "http://", "./mlruns"])
def test_a_wrong_tracking_uri(learnt: tuple[str, Path, Path], tmp_path: Path, uri: str) -> None:
    name, _, file = learnt
    file = tmp_path / "settings.yaml"
    file.write_text(learnt[2].read_text().replace("registry: {enabled: false}\n", ""))
    line = learn("--stream", name, "--state", tmp_path / "state", "--settings", file, "--tracking-uri", uri)
    assert line.startswith(f"MLflow tracking URI {uri!r} cannot be used")


def test_a_state_of_another_stream(
    kafka_broker: EmbeddedKafka, learnt: tuple[str, Path, Path], stream_name: str
) -> None:
    name, state, file = learnt
    send(kafka_broker, stream_name, 20)
    line = learn("--stream", stream_name, "--state", state, "--settings", file)
    assert f"holds the state of stream {name!r}, not {stream_name!r}; give another --state" in line


def test_a_state_of_another_branch(learnt: tuple[str, Path, Path]) -> None:
    name, state, file = learnt
    line = learn("--stream", name, "--state", state, "--settings", file, "--branch", "other")
    assert "holds the state of branch 'main', not 'other'" in line


def test_a_branch_without_its_state(learnt: tuple[str, Path, Path], tmp_path: Path) -> None:
    name, _, file = learnt
    line = learn("--stream", name, "--state", tmp_path / "empty", "--settings", file)
    assert "give the --state it was learnt with, or another --branch" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "replay: {capacity: 61, draw_size: 16}",
            "setting learner.replay.capacity is 61, but this state was made with 60",
        ),
        ("retention: {der_pp: {}}\n  replay: {capacity: 60, draw_size: 16}", "setting learner.retention is ['der_pp']"),
    ],
)
def test_a_fixed_setting_that_changed(learnt: tuple[str, Path, Path], tmp_path: Path, change: str, words: str) -> None:
    name, state, file = learnt
    changed = tmp_path / "changed.yaml"
    changed.write_text(file.read_text().replace("replay: {capacity: 60, draw_size: 16}", change))
    line = learn("--stream", name, "--state", state, "--settings", changed)
    assert words in line
    assert "fixed for a state; set it back, or give another --state" in line


def test_a_state_folder_that_cannot_be_written(learnt: tuple[str, Path, Path], tmp_path: Path) -> None:
    name, _, file = learnt
    (tmp_path / "file").touch()
    line = learn("--stream", name, "--state", tmp_path / "file" / "state", "--settings", file)
    assert line == f"cannot write to state folder {tmp_path / 'file' / 'state'}: Not a directory; give another --state"


def test_names_that_kafka_would_not_take(learnt: tuple[str, Path, Path], tmp_path: Path) -> None:
    name, _, file = learnt
    common = ("--state", tmp_path / "state", "--settings", file)
    assert learn("--stream", "a b", *common).startswith("stream name 'a b'")
    assert learn("--stream", name, "--branch", "a b", *common).startswith("branch name 'a b'")
    assert not (tmp_path / "state").exists()


def test_a_port_of_the_metrics_that_is_taken(learnt: tuple[str, Path, Path]) -> None:
    name, state, file = learnt
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = learn("--stream", name, "--state", state, "--settings", file, "--metrics-port", port)
    assert line.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use")


def test_a_password_that_no_broker_wants_is_not_shown(
    kafka_broker: EmbeddedKafka, learnt: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, state, file = learnt
    for variable, value in {
        "SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "SASL_MECHANISM": "PLAIN",
        "SASL_PLAIN_USERNAME": "u",
        "SASL_PLAIN_PASSWORD": "hunter2",
        "CONNECT_TIMEOUT_SECONDS": "1",
    }.items():
        monkeypatch.setenv(f"PALIMPSEST_KAFKA__{variable}", value)
    assert KafkaSettings.model_fields.keys() >= {"connect_timeout_seconds"}
    line = learn("--stream", name, "--state", state, "--settings", file)
    assert kafka_broker.bootstrap_servers in line
    assert "hunter2" not in line


@pytest.mark.parametrize("options", [(), ("--branch", "past", "--from-offsets", "end")], ids=["start", "rewind"])
def test_a_stop_while_no_broker_answers_is_no_error(tmp_path: Path, options: tuple[str, ...]) -> None:
    with socket.socket() as mute:  # takes connections, and never says a word
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        mute.settimeout(DEADLINE_SECONDS)
        servers = f"127.0.0.1:{mute.getsockname()[1]}"
        env = {"PALIMPSEST_KAFKA__CONNECT_TIMEOUT_SECONDS": str(DEADLINE_SECONDS)}
        arguments = ("--stream", "s", "--state", tmp_path / "state", "--bootstrap-servers", servers, *options)
        with Running("learn", *arguments, env=env) as running:
            connection, _ = mute.accept()
            running.signal(signal.SIGTERM)
            began = time.monotonic()
            assert running.end() == 0, running.lines
            assert time.monotonic() - began < DEADLINE_SECONDS / 2
            connection.close()
    assert (running.events[-1]["event"], running.events[-1]["stopped_by"]) == ("stopped", "signal")


def test_a_stop_while_an_erasure_works_is_heard(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    began = time.monotonic()
    with (
        exclusive_lock(tmp_path),
        pytest.raises(LockStopped),
        open_learner(stream="s", state=tmp_path, settings=Settings(), stop=stop),
    ):
        raise AssertionError("it has started")
    assert time.monotonic() - began < 5.0
