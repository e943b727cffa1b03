"""A process that is ended while MLflow's tables are made leaves nothing in the way of the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_store.durable_files import TEMPORARY_PREFIX
from model_store.mlflow_registry import MlflowRegistry
from model_store.new_database import make_database

# It stops itself when some of the tables are made, but not all.
MAKES = f"""
import os, signal, sys
from pathlib import Path
import sqlalchemy
from model_store.mlflow_registry import MlflowRegistry

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
folder = Path(sys.argv[2])

@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "after_cursor_execute")
def look(*_):
    if sum(path.stat().st_size for path in folder.glob("{TEMPORARY_PREFIX}*-mlflow.db")) >= 50_000:
        os.kill(os.getpid(), signal.SIGSTOP)

MlflowRegistry(sys.argv[1]).warm_up()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_tables_are_made_whole_or_not_at_all(tmp_path: Path, number: signal.Signals) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with subprocess.Popen([sys.executable, "-c", MAKES, uri, tmp_path], stderr=subprocess.DEVNULL) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), status
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        process.wait(60)
    assert not (tmp_path / "mlflow.db").exists()
    assert any(tmp_path.iterdir()), "it was in the midst of it"
    MlflowRegistry(uri).warm_up()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert MlflowRegistry(uri).versions("digits") == []


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], object]], None]:
    """Has a function called with the URI of what is being made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports more of MLflow's code
        from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    made: Callable[..., None] = SqlAlchemyStore.__init__

    def hear(heard: Callable[[str], object]) -> None:
        def beside(self: Any, uri: str) -> None:
            heard(uri)
            made(self, uri)

        monkeypatch.setattr(SqlAlchemyStore, "__init__", beside)

    return hear


@pytest.mark.parametrize("path", ["a.db", "./a.db", "/a.db", "sub/../a.db"])
def test_the_uri_is_kept_but_for_the_file(path: str, tmp_path: Path, making: Any) -> None:
    (tmp_path / "sub").mkdir()
    uris: list[str] = []
    making(uris.append)
    make_database(f"sqlite+pysqlite:///{tmp_path}/{path}?timeout=20")
    (uri,) = uris
    assert uri.startswith(f"sqlite+pysqlite:///{tmp_path}")
    assert uri.endswith("-a.db?timeout=20")
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["a.db"]


def test_what_somebody_else_made_meanwhile_stays(tmp_path: Path, making: Any) -> None:
    file = tmp_path / "a.db"
    making(lambda _uri: file.write_bytes(b"another's"))
    make_database(f"sqlite:///{file}")
    assert file.read_bytes() == b"another's"
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]
