"""MLflow's tables are made once; every test gets a copy of the file, and MLflow is left as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model_store.mlflow_registry import MlflowRegistry

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowRegistry(f"sqlite:///{file}").warm_up()
    return file


@pytest.fixture
def tracking_uri(empty_database: Path, tmp_path: Path) -> str:
    """An MLflow of its own, empty."""
    folder = tmp_path / "mlflow"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


@contextmanager
def mlflow_at(uri: str) -> Iterator[None]:
    """Inside, MLflow's own functions ask there. It notes that in the environment too, where later learners look."""
    import mlflow

    name = "MLFLOW_TRACKING_URI"
    before, of_environment = mlflow.get_tracking_uri(), os.environ.get(name)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        os.environ.pop(name, None)
        if of_environment is not None:
            os.environ[name] = of_environment
