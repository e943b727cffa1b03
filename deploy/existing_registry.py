"""The MLflow that has versions already: opened for commands that look for some, its errors with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from model_store.registry import Registry, RegistryRefused, RegistryUnavailable
from model_store.tracking_uri import sqlite_file
from pipeline.user_error import UserError


def existing_registry(uri: str) -> Registry:
    """Where a file is missing MLflow would make an empty one, and that a version is not there would be no help."""
    from model_store.mlflow_registry import MlflowRegistry  # seconds

    registry = MlflowRegistry(uri)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise UserError(
            f"there is no MLflow database {file}: name the one that has the versions with --tracking-uri, "
            "registry.tracking_uri or MLFLOW_TRACKING_URI"
        )
    return registry


@contextmanager
def registry_errors() -> Iterator[None]:
    """With the way out."""
    try:
        yield
    except RegistryUnavailable as error:
        raise RegistryUnavailable(f"{error}; the same command goes on from here once it answers") from error
    except RegistryRefused as error:
        raise UserError(f"MLflow refuses: {error}; check --tracking-uri and who may read and write there") from error
