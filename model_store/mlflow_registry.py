"""Versions in MLflow 3: registered model and experiment `<stream>`, one run for each learner's state.

Never stages; never pickle: the artifact is code (`servable_pyfunc.py`), safetensors and JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from model_store.durable_files import TEMPORARY_PREFIX
from model_store.mlflow_environment import prepare_mlflow

prepare_mlflow()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what MLflow's import says of MLflow's own code
    import mlflow.artifacts
    import mlflow.pyfunc
    import sqlalchemy.exc
    from mlflow.entities import Metric, ViewType
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature
    from mlflow.tracking import MlflowClient
    from mlflow.types import ColSpec, DataType, Schema

from model_store.new_database import make_database  # noqa: E402
from model_store.registry import (  # noqa: E402
    PROVENANCE_FILE,
    SERVABLE_FILES,
    SNAPSHOT_SHA256_TAG,
    STATE_ID_TAG,
    SUPERSEDED_BY_TAG,
    Alias,
    MetricPoint,
    RegisteredVersion,
    RegistrationRequest,
    Registry,
    RegistryRefused,
    RegistryUnavailable,
    ServableBroken,
    check_servable,
    check_tag,
    lineage_of,
)
from model_store.tracking_uri import check_tracking_uri, sqlite_file, without_password  # noqa: E402
from pipeline.user_error import UserError  # noqa: E402

_METRICS_PER_BATCH = 1000  # MLflow takes no more in one request
_MAX_METRIC_NAME_CHARACTERS = 250
_VERSIONS_PER_PAGE = 20
# What the package `pipeline` imports when it opens a servable; pinned to what made it.
_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "safetensors",
    "torch",
    "torchvision",
    "transformers",
)
_PIPELINE_PACKAGE = Path(__file__).parent.parent / "pipeline"
_PYFUNC_CODE = Path(__file__).with_name("servable_pyfunc.py")


class MlflowRegistry(Registry):
    """Any tracking URI. With SQLite, artifacts lie in `mlartifacts/` beside the database file."""

    def __init__(self, tracking_uri: str) -> None:
        """Asks nobody yet. `UserError` for a URI that MLflow could not make anything of."""
        check_tracking_uri(tracking_uri)
        self.tracking_uri = tracking_uri
        self._client_made: MlflowClient | None = None
        self._lock = threading.Lock()

    def register(self, request: RegistrationRequest) -> RegisteredVersion:
        """Idempotent: killed after any step, the next call goes on from there.

        1. Look for a version with the snapshot's tag: it is the one, go on with 6.
        2. The registered model, the experiment and the state's run: find or make.
        3. Metrics to the run, before there is a version: a version's metrics are never missing.
        4. The artifact, under a path made of the SHA-256: a half one is overwritten.
        5. The version with all its tags, in one request.
        6. Versions of its state that it supersedes are told so, where it goes back.
        7. The alias `challenger`, if it is the newest version.
        """
        check_servable(request.servable)
        with self._translated():
            # 1.
            found = self._of_snapshot(request.stream, request.snapshot_sha256)
            if found is None:
                # 2.
                self._make_model(request.stream)
                run_id, artifact_uri = self._run(request.stream, request.state_id)
                # 3.
                self._log_points(run_id, request.metrics)
                # 4.
                path = f"versions/{request.snapshot_sha256[:16]}"
                self._log_artifact(request, run_id, path)
                # 5.
                parent = request.parent_version
                if parent is None:
                    parent = lineage_of(self._of_state(request.stream, request.state_id), request).parent
                self._client.create_model_version(
                    request.stream, f"{artifact_uri}/{path}", run_id=run_id, tags=request.version_tags(parent)
                )
                self._client.set_terminated(run_id)  # "finished" until there is more: an idle run is not running
                found = self._of_snapshot(request.stream, request.snapshot_sha256)
                if found is None:
                    raise RegistryUnavailable("MLflow took a version and does not show it yet")
            # 6.
            if request.goes_back:
                of_state = self._of_state(request.stream, request.state_id)
                older = (entry for entry in of_state if entry.version < found.version)
                for number in lineage_of(older, request).abandoned:
                    self._client.set_model_version_tag(
                        request.stream, str(number), SUPERSEDED_BY_TAG, str(found.version)
                    )
            # 7.
            if "challenger" not in found.aliases and found.version == self._newest_number(request.stream):
                self._client.set_registered_model_alias(request.stream, "challenger", str(found.version))
                found = replace(found, aliases=found.aliases | {"challenger"})
            return found

    def versions(self, stream: str) -> list[RegisteredVersion]:
        with self._translated():
            return self._search(stream)

    def newest(self, stream: str, count: int) -> list[RegisteredVersion]:
        with self._translated():
            try:
                aliases = dict(self._client.get_registered_model(stream).aliases)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise
            found = self._client.search_model_versions(
                f"name='{stream}'", max_results=count, order_by=["version_number DESC"]
            )
            return [_version(entry, aliases) for entry in reversed(found)]

    def find(self, stream: str, at: int | str) -> RegisteredVersion | None:
        with self._translated():
            try:
                aliases = dict(self._client.get_registered_model(stream).aliases)
                number = str(at) if isinstance(at, int) else aliases.get(at)
                return None if number is None else _version(self._client.get_model_version(stream, number), aliases)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def fetch_servable(self, version: RegisteredVersion, folder: Path) -> None:
        """Beside it lie the model's code and its MLmodel, which nobody reads here."""
        uri = f"models:/{version.stream}/{version.version}"
        with self._translated(), tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder.parent) as scratch:
            place = self._client.get_model_version_download_uri(version.stream, str(version.version))
            try:
                artifacts = mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{place}/artifacts",
                    dst_path=scratch,
                    tracking_uri=self.tracking_uri,
                    registry_uri=self.tracking_uri,
                )
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ServableBroken(f"{uri} holds no servable: {_first_line(error)}") from error
            except MlflowException as error:
                if _is_passing(error) or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise ServableBroken(f"{uri} holds no servable: {_first_line(error)}") from error
            # MLflow calls it as its folder was called when it was registered
            found = [path.parent for path in Path(artifacts).rglob(SERVABLE_FILES[0])]
            if len(found) != 1:
                raise ServableBroken(f"{uri} holds {len(found)} servables")
            check_servable(found[0], called=uri)  # the scratch folder has another name each time
            found[0].rename(folder)

    def alias(self, stream: str, alias: Alias) -> RegisteredVersion | None:
        """Asked for alone, and often: after months there are thousands of versions."""
        return self.find(stream, alias)

    def set_alias(self, stream: str, alias: Alias, version: int | None) -> None:
        with self._translated():
            known = [entry.version for entry in self._search(stream)]
            if version is None:
                if known:
                    self._client.delete_registered_model_alias(stream, alias)
            elif version in known:
                self._client.set_registered_model_alias(stream, alias, str(version))
            else:
                raise UserError(f"model {stream!r} has no version {version}; it has {known}")

    def set_tag(self, stream: str, version: int, name: str, value: str) -> None:
        check_tag(name, value)
        with self._translated():
            try:
                self._client.set_model_version_tag(stream, str(version), name, value)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                known = [entry.version for entry in self._search(stream)]
                raise UserError(f"model {stream!r} has no version {version}; it has {known}") from None

    def log_metrics(self, stream: str, state_id: str, points: Sequence[MetricPoint]) -> None:
        with self._translated():
            run_id, _ = self._run(stream, state_id)
            self._log_points(run_id, points)

    def warm_up(self) -> None:
        """Connect now: the first connection to a new SQLite file makes its tables, which takes seconds."""
        with self._translated():
            self._client.search_experiments(max_results=1)

    # -- one request each ------------------------------------------------------------------------------------------

    @property
    def _client(self) -> MlflowClient:
        with self._lock:
            if self._client_made is None:
                file = sqlite_file(self.tracking_uri)
                folder = None if file is None else file.absolute().parent
                with (
                    contextlib.nullcontext() if folder is None else _alone_in(folder),
                    warnings.catch_warnings(),
                ):
                    warnings.simplefilter("ignore")  # it imports more of MLflow's code
                    if folder is not None:
                        make_database(self.tracking_uri)
                    client = MlflowClient(self.tracking_uri, self.tracking_uri)
                    if folder is not None:
                        client.search_registered_models(max_results=1)
                self._client_made = client
            return self._client_made

    def _search(self, stream: str, condition: str = "") -> list[RegisteredVersion]:
        """Oldest first."""
        try:
            aliases = dict(self._client.get_registered_model(stream).aliases)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self._client.search_model_versions(f"name='{stream}'{condition}", max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                break
        return sorted((_version(entry, aliases) for entry in found), key=lambda entry: entry.version)

    def _of_snapshot(self, stream: str, snapshot_sha256: str) -> RegisteredVersion | None:
        found = self._search(stream, f" AND tags.`{SNAPSHOT_SHA256_TAG}` = '{snapshot_sha256}'")
        return found[0] if found else None

    def _of_state(self, stream: str, state_id: str) -> Iterator[RegisteredVersion]:
        """Newest first, a page at a time: mostly the first one answers what is asked. Their aliases are not."""
        condition = f"name='{stream}' AND tags.`{STATE_ID_TAG}` = '{state_id}'"
        token: str | None = None
        while True:
            page = self._client.search_model_versions(
                condition, max_results=_VERSIONS_PER_PAGE, order_by=["version_number DESC"], page_token=token
            )
            yield from (_version(entry, {}) for entry in page)
            token = page.token
            if not token:
                return

    def _newest_number(self, stream: str) -> int | None:
        """Asked for alone: after months there are thousands of versions."""
        newest = self._client.search_model_versions(f"name='{stream}'", max_results=1, order_by=["version_number DESC"])
        return int(newest[0].version) if newest else None

    def _make_model(self, stream: str) -> None:
        try:
            self._client.create_registered_model(stream)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _run(self, stream: str, state_id: str) -> tuple[str, str]:
        """(id, artifact URI) of the state's run, found by its tag or made."""
        assert "'" not in state_id, f"a state's id is no part of a filter: {state_id!r}"
        experiment = self._client.get_experiment_by_name(stream)
        if experiment is None:
            experiment_id = self._client.create_experiment(stream, artifact_location=self._artifact_location(stream))
        elif experiment.lifecycle_stage != "active":
            raise RegistryRefused(
                f"experiment {stream!r} was deleted in MLflow: restore it there, or delete it for good"
            )
        else:
            experiment_id = experiment.experiment_id
        runs = self._client.search_runs(
            [experiment_id], f"tags.`{STATE_ID_TAG}` = '{state_id}'", run_view_type=ViewType.ACTIVE_ONLY, max_results=1
        )
        run = (
            runs[0]
            if runs
            else self._client.create_run(
                experiment_id, tags={STATE_ID_TAG: state_id}, run_name=f"{stream} {state_id[:8]}"
            )
        )
        return run.info.run_id, run.info.artifact_uri.rstrip("/")

    def _artifact_location(self, stream: str) -> str | None:
        """Without a server MLflow would put artifacts into the working directory of whoever asks first."""
        file = sqlite_file(self.tracking_uri)
        return None if file is None else (file.absolute().parent / "mlartifacts" / stream).as_uri()

    def _log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        metrics = [Metric(metric_name(point.name), point.value, point.timestamp_ms, point.step) for point in points]
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])

    def _log_artifact(self, request: RegistrationRequest, run_id: str, path: str) -> None:
        # Beside the servable: what a kill leaves there goes with the request.
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=request.servable.parent) as scratch:
            folder = Path(scratch) / "model"
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*input example was not provided")  # the signature is
                mlflow.pyfunc.save_model(
                    folder,
                    python_model=str(_PYFUNC_CODE),
                    artifacts={"servable": str(request.servable)},
                    code_paths=[str(_PIPELINE_PACKAGE)],
                    signature=_signature(),
                    # Given, so that MLflow does not start a process that imports the model to find out.
                    pip_requirements=_pinned_requirements(),
                    mlflow_model=Model(run_id=run_id),
                )
            (folder / PROVENANCE_FILE).write_bytes(request.provenance())
            self._client.log_artifacts(run_id, str(folder), path)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """MLflow's errors as ours."""
        try:
            yield
        except MlflowException as error:
            if _is_passing(error):
                raise RegistryUnavailable(self._message(error)) from error
            raise RegistryRefused(self._message(error)) from error
        except (OSError, sqlalchemy.exc.SQLAlchemyError) as error:
            raise RegistryUnavailable(self._message(error)) from error

    def _message(self, error: Exception) -> str:
        return without_password(f"MLflow at {self.tracking_uri}: {_first_line(error)}")


def metric_name(name: str) -> str:
    """A name that MLflow takes: class names may hold anything. Names that differ stay different."""
    kept = re.sub(r"[^\w.\- /]", "_", name, flags=re.ASCII)
    kept = re.sub(r"/+", "/", kept).strip("/ ")
    parts = [part for part in kept.split("/") if part.strip(".")]
    kept = "/".join(parts)[: _MAX_METRIC_NAME_CHARACTERS - 9]
    return name if kept == name else f"{kept}_{zlib.crc32(name.encode(errors='replace')):08x}"


def _version(entry: Any, aliases: dict[str, Any]) -> RegisteredVersion:
    return RegisteredVersion(
        stream=entry.name,
        version=int(entry.version),
        tags=dict(entry.tags),
        aliases=frozenset(alias for alias, number in aliases.items() if int(number) == int(entry.version)),
        created_at_ms=entry.creation_timestamp,
        run_id=entry.run_id,
    )


def _signature() -> ModelSignature:
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "payload"), ColSpec(DataType.string, "content_type")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label", required=False),
                ColSpec(DataType.double, "probability", required=False),
                ColSpec(DataType.string, "probabilities", required=False),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
    )


def _pinned_requirements() -> list[str]:
    """Without local parts ("+cpu"): no index has them."""
    return [f"{name}=={installed_version(name).partition('+')[0]}" for name in _REQUIREMENTS]


def _first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:500]


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Until it is left, no other process of ours is in here with this folder, which is made: of two that make a
    database's tables at once each would remove the other's file."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_passing(error: MlflowException) -> bool:
    """Whether another try may go well: no connection, a server in trouble, a locked database, too many requests."""
    status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
    if status >= 500 or status in (409, 429):
        return True
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError | sqlalchemy.exc.OperationalError):  # requests' exceptions are OSErrors
            return True
        seen = seen.__cause__ or seen.__context__
    return False
