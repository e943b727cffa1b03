"""A registered version behind `mlflow models serve` says what our predictor says."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from deploy.local_port import free_port
from model_store.mlflow_registry import MlflowRegistry
from pipeline.classifier import Classifier, Prediction
from pipeline.codec.image import encode_png
from tests.consumers.digit_records import digit_images
from tests.consumers.versions_world import digits_classifier, register
from tests.deploy.command_line import environment

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

DEADLINE_SECONDS = 120.0


@contextmanager
def serving(model: str, tracking_uri: str, log: Path, ports: Iterable[int]) -> Iterator[str]:
    """`mlflow models serve`, on the first of `ports` that can be had; yields its URL once it answers."""
    for port in ports:
        with served_on(port, model, tracking_uri, log) as url:
            if url is not None:
                yield url
                return
    pytest.fail(f"each port was taken by the time it was to be listened on: {log.read_text()}")


def free_ports() -> Iterator[int]:
    """A few: one that is free may be somebody else's by the time a server binds it."""
    for _ in range(5):
        yield free_port()


@contextmanager
def served_on(port: int, model: str, tracking_uri: str, log: Path) -> Iterator[str | None]:
    """None: somebody else has taken the port meanwhile. MLflow takes none of 0, by which a server picks its own."""
    program = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    variables = environment(MLFLOW_TRACKING_URI=tracking_uri, MLFLOW_DISABLE_TELEMETRY="true")
    # it starts its server by the name of the program, which lies beside this interpreter
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=variables,
            start_new_session=True,  # it has children, which end with it
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        is_taken = False
        while not is_taken and not answers(f"{url}/ping"):
            is_taken = "address already in use" in log.read_text().lower()
            assert is_taken or process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield None if is_taken else url
    finally:
        with suppress(ProcessLookupError):  # it has ended, and its children too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_SECONDS)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def asked(url: str, payloads: Sequence[tuple[bytes, str]]) -> list[dict[str, Any]]:
    rows = [[base64.b64encode(value).decode(), content_type] for value, content_type in payloads]
    body = json.dumps({"dataframe_split": {"columns": ["payload", "content_type"], "data": rows}}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        told = json.loads(answer.read(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    found: list[dict[str, Any]] = told["predictions"]
    return found


def test_it_says_what_our_predictor_says(tracking_uri: str, tmp_path: Path) -> None:
    registry = MlflowRegistry(tracking_uri)
    for number, classes in enumerate(("012", "0123456789")):
        version = register(registry, tmp_path, digits_classifier(tuple(classes), seed=number))
    registry.set_alias("digits", "champion", version.version)
    registry.fetch_servable(version, tmp_path / "fetched")
    ours = Classifier.load(tmp_path / "fetched")
    x, _ = digit_images()
    payloads = [(encode_png(image), "image/png") for image in x[:40]]
    payloads.insert(3, (b"no image", "image/png"))
    payloads.insert(7, (payloads[0][0], "application/x-unknown"))
    with socket.socket() as somebody_else:
        somebody_else.bind(("127.0.0.1", 0))
        ports = chain([somebody_else.getsockname()[1]], free_ports())
        with serving("models:/digits@champion", tracking_uri, tmp_path / "serving.log", ports) as url:
            theirs = asked(url, payloads)
    said = ours.predict(payloads)
    assert len({answer.label for answer in said if isinstance(answer, Prediction)}) >= 8
    for our_answer, their_answer in zip(said, theirs, strict=True):
        if isinstance(our_answer, Prediction):
            assert their_answer["label"] == our_answer.label
            assert their_answer["probability"] == pytest.approx(our_answer.probability, abs=1e-5)
            assert json.loads(their_answer["probabilities"]) == pytest.approx(dict(our_answer.probabilities), abs=1e-5)
            assert their_answer["error"] is None
        else:
            assert their_answer["error"] == str(our_answer)
            assert [their_answer[name] for name in ("label", "probability", "probabilities")] == [None] * 3
