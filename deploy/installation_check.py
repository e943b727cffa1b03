"""An operator's look at this machine: the versions that run here, and whether MLflow answers."""

from __future__ import annotations

import platform
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

from consumers import kafka_python_mending
from consumers.check_report import Fact, judged
from model_store.tracking_uri import check_tracking_uri, sqlite_file, without_password
from pipeline.user_error import UserError

_PACKAGES = ("palimpsest", "torch", "kafka-python", "mlflow", "safetensors", "numpy")
_ANSWER_SECONDS = 5.0


def check_installation() -> list[Fact]:
    """Versions, read without importing what is large."""
    facts = [judged("versions", "python", platform.python_version(), "ok", "")]
    for package in _PACKAGES:
        found = _version(package)
        way_out = f"`pip install {package}`"
        facts.append(judged("versions", package, found or "missing", "ok" if found else "problem", way_out))
    mended = kafka_python_mending.MENDED_VERSION
    if not kafka_python_mending.mends_this_version():
        way_out = f"known faults are mended for {mended} only: `pip install kafka-python=={mended}`"
        facts.append(judged("versions", "kafka-python, mended", "no", "warning", way_out))
    fast = _version("crc32c")
    way_out = "reading Kafka is 10 to 15 times slower without: `pip install crc32c`"
    facts.append(judged("versions", "crc32c", fast or "missing", "ok" if fast else "warning", way_out))
    return facts


def check_registry(uri: str | None) -> list[Fact]:
    """Does MLflow answer there? Without importing it, and within `_ANSWER_SECONDS`. None: it is not known where."""
    if uri is None:
        value = "a SQLite file above the state's folder; give --state to look at it"
        return [judged("registry", "MLflow", value, "ok", "")]
    shown = without_password(uri)
    try:
        check_tracking_uri(uri)
    except UserError as error:
        return [judged("registry", "MLflow", shown, "problem", str(error))]
    file = sqlite_file(uri)
    if file is not None:
        return [judged("registry", "MLflow", f"{shown}, {'there' if file.exists() else 'not there yet'}", "ok", "")]
    if urlsplit(uri).scheme not in ("http", "https"):
        return [judged("registry", "MLflow", f"{shown}, not tried", "ok", "")]
    way_out = "versions wait on the learner's disk until it answers: start it, or correct registry.tracking_uri"
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_ANSWER_SECONDS):
            return [judged("registry", "MLflow", f"{shown} answers", "ok", "")]
    except urllib.error.HTTPError as error:
        # It answers; a proxy in front of it may keep the page of its health to itself.
        what = f"{shown} answers {error.code}"
        return [judged("registry", "MLflow", what, "warning" if error.code >= 500 else "ok", way_out)]
    except (OSError, ValueError) as error:
        why = without_password(str(getattr(error, "reason", error)))
        return [judged("registry", "MLflow", f"{shown} does not answer ({why})", "warning", way_out)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
