"""Where MLflow is: checked without importing it, so that a wrong address is one clear line at the start."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.user_error import UserError

_SCHEMES = frozenset({"http", "https", "databricks"})
_DATABASES = frozenset({"sqlite", "postgresql", "mysql", "mssql"})


def check_tracking_uri(uri: str) -> None:
    """`UserError` where MLflow could not make anything of it. Asks nobody: a server that is away may come back."""
    scheme, problem = _scheme(uri), None
    if scheme in {"http", "https"}:
        try:
            parts = urlsplit(uri)
            if not parts.hostname or parts.port == 0:
                problem = "it names no host"
        except ValueError as error:  # a port that is not a number
            problem = str(error)
    elif scheme == "sqlite":
        file = sqlite_file(uri)
        if file is None:
            problem = "it names no file"
        elif file.is_dir():
            problem = f"{file} is a folder"
        elif not _nearest_folder(file).is_dir():
            problem = f"{_nearest_folder(file)} is not a folder"
    elif scheme in {"", "file"}:
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in {"true", "1"}:
            problem = "MLflow keeps no versions in plain folders any more"
    elif scheme not in _SCHEMES | _DATABASES and scheme not in _plugin_schemes():
        problem = f"there is no scheme {scheme!r}"
    if problem is not None:
        raise UserError(
            f"MLflow tracking URI {without_password(uri)!r} cannot be used: {problem}; "
            "give http(s)://HOST:PORT, sqlite:////PATH/mlflow.db or postgresql://HOST/DATABASE"
        )


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite URI; None for one in memory or another scheme's."""
    scheme, _, rest = uri.partition(":///")
    path = rest.partition("?")[0]
    return Path(path) if scheme.partition("+")[0] == "sqlite" and path and path != ":memory:" else None


def missing_database(uri: str) -> str | None:
    """Why there are no versions yet, with the way out; None: ask. MLflow would make an empty file where one is missing,
    and that a version is not there would be no help."""
    file = sqlite_file(uri)
    if file is None or file.exists():
        return None
    return (
        f"there is no MLflow database {file}: name the one that has the versions with --tracking-uri, "
        "registry.tracking_uri or MLFLOW_TRACKING_URI"
    )


def without_password(text: str) -> str:
    """A URI, or a message with URIs in it, as it may be printed."""
    return re.sub(r"://([^/\s:@]*):[^/\s]*@", r"://\1:***@", text)


def _scheme(uri: str) -> str:
    if uri == "databricks":
        return uri
    return uri.partition(":")[0].partition("+")[0].lower() if ":" in uri else ""


def _plugin_schemes() -> set[str]:
    return {entry.name for entry in entry_points(group="mlflow.tracking_store")}


def _nearest_folder(file: Path) -> Path:
    """The file's folder, or where it is still to be made, the nearest thing above it that exists."""
    return next(parent for parent in file.absolute().parents if parent.exists())
