"""The MLflow that has versions already: opened for commands that look for some, its errors with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from model_store.registry import Registry, RegistryRefused, RegistryUnavailable
from model_store.tracking_uri import missing_database
from pipeline.user_error import UserError


def existing_registry(uri: str) -> Registry:
    """`UserError` where its file is missing (`missing_database`)."""
    from model_store.mlflow_registry import MlflowRegistry  # seconds

    registry = MlflowRegistry(uri)
    missing = missing_database(uri)
    if missing is not None:
        raise UserError(missing)
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
