"""MLflow's tables are made once; every test gets a copy of the file."""

from __future__ import annotations

import shutil
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
