"""A process that is ended while MLflow's tables are made leaves nothing in the way of the next one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model_store.mlflow_registry import MlflowRegistry

MAKES = """
import sys
from model_store.mlflow_registry import MlflowRegistry
MlflowRegistry(sys.argv[1]).warm_up()
"""


def wait_for_tables(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until some of them are made, but not all."""
    deadline = time.monotonic() + 120
    while sum(path.stat().st_size for path in folder.iterdir()) < 50_000:
        assert process.poll() is None, "it is done already"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_tables_are_made_whole_or_not_at_all(tmp_path: Path, number: signal.Signals) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with subprocess.Popen([sys.executable, "-c", MAKES, uri], stderr=subprocess.DEVNULL) as process:
        wait_for_tables(tmp_path, process)
        process.send_signal(number)
        process.wait(60)
    assert not (tmp_path / "mlflow.db").exists()
    assert any(tmp_path.iterdir()), "it was in the midst of it"
    MlflowRegistry(uri).warm_up()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert MlflowRegistry(uri).versions("digits") == []


def test_options_of_the_uri_are_kept(tmp_path: Path) -> None:
    uri = f"sqlite+pysqlite:///{tmp_path / 'a.db'}?timeout=20"
    MlflowRegistry(uri).warm_up()
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]
