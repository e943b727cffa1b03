"""A new SQLite database of MLflow: whole, or not there.

MLflow makes the tables by dozens of migrations, which take seconds and cannot be gone on with: of a process that is
ended meanwhile a file is left that nobody can open any more ("table ... already exists"). So they are made in a file
beside it, which gets its name once it is whole.
"""

from __future__ import annotations

import contextlib
import os

from model_store.durable_files import remove_temporary, sync, temporary_sibling
from model_store.tracking_uri import sqlite_file


def make_database(uri: str) -> None:
    """Where the file of this SQLite URI does not exist. No other process may do so meanwhile, with the same file."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore  # makes all tables, of runs too

    file = sqlite_file(uri)
    assert file is not None, f"not a file's: {uri}"
    if file.exists():
        return
    for ending in ("", "-journal"):  # of one that was killed
        remove_temporary(file.parent, f"-{file.name}{ending}")
    making = temporary_sibling(file)
    scheme, separator, rest = uri.partition(":///")
    _, mark, options = rest.partition("?")
    store = SqlAlchemyStore(f"{scheme}{separator}{making}{mark}{options}")  # type: ignore[no-untyped-call]
    store.engine.dispose()
    with contextlib.suppress(FileExistsError):  # a server that knows nothing of us was quicker
        os.link(making, file)
    making.unlink()
    sync(file.parent)
