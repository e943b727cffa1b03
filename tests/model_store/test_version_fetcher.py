"""The fetcher follows an alias, in memory and in MLflow, and its process ends with its parent's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local_port import free_port
from model_store.child_process import ChildProcess
from model_store.mlflow_registry import MlflowRegistry
from model_store.registry import InMemoryRegistry, Registry
from model_store.served_versions import ServedVersions
from model_store.tracking_uri import sqlite_file
from model_store.version_fetcher import VersionFetcher
from pipeline.classifier import Classifier
from tests.model_store.test_served_versions import here, together
from tests.model_store.tiny_servable import request

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

PROJECT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(params=["memory", "mlflow"])
def registry(request: pytest.FixtureRequest) -> Registry:
    if request.param == "memory":
        return InMemoryRegistry()
    return MlflowRegistry(request.getfixturevalue("tracking_uri"))


@pytest.fixture
def versions(tmp_path: Path) -> ServedVersions:
    versions = ServedVersions(tmp_path / "models", "pets")
    versions.prepare()
    return versions


def register(registry: Registry, folder: Path, *numbers: int) -> None:
    for number in numbers:
        registry.register(request(folder / "servable", number))


def served(versions: ServedVersions) -> int | None:
    """Of the champion, where it is whole."""
    found = versions.role("champion").served
    if found is None:
        return None
    Classifier.load(versions.path(found))
    return found.version


def test_it_follows_the_alias(registry: Registry, versions: ServedVersions, tmp_path: Path) -> None:
    told: list[str] = []
    fetcher = VersionFetcher(versions, registry, "champion", tell=told.append)
    fetcher.look()
    assert versions.role("champion").problem == told[0]
    assert told[0].startswith("model 'pets' has no alias 'champion': give it to a version, in MLflow or with `palimpse")
    register(registry, tmp_path, 1, 2)
    fetcher.look()
    assert (served(versions), len(told)) == (None, 1)
    registry.set_alias("pets", "champion", 1)
    fetcher.look()
    assert (served(versions), versions.role("champion").problem) == (1, None)
    assert told[1:] == ["champion is version 1"]
    before = versions.changed("champion")
    fetcher.look()
    assert versions.changed("champion") == before, "nothing is written where nothing changed"
    registry.set_alias("pets", "champion", 2)
    fetcher.look()
    assert served(versions) == 2
    registry.set_alias("pets", "champion", 1)
    fetcher.look()
    assert (served(versions), len(here(versions)), len(told)) == (1, 2, 2)


def test_an_alias_that_is_taken_away_leaves_what_is_served(
    registry: Registry, versions: ServedVersions, tmp_path: Path
) -> None:
    register(registry, tmp_path, 1)
    registry.set_alias("pets", "champion", 1)
    fetcher = VersionFetcher(versions, registry, "champion", tell=lambda _: None)
    fetcher.look()
    registry.set_alias("pets", "champion", None)
    fetcher.look()
    assert served(versions) == 1
    assert "has no alias 'champion'" in str(versions.role("champion").problem)


def test_while_it_is_away_what_is_here_stays_and_that_is_told_once(versions: ServedVersions, tmp_path: Path) -> None:
    registry, told = InMemoryRegistry(), list[str]()
    register(registry, tmp_path, 1)
    registry.set_alias("pets", "champion", 1)
    fetcher = VersionFetcher(versions, registry, "champion", tell=told.append)
    looked = versions.looked("champion")
    assert not looked.exists()
    fetcher.look()
    os.utime(looked, (1.0, 1.0))
    fetcher.look()
    assert looked.stat().st_mtime > 1.0, "also where nothing changed"
    os.utime(looked, (1.0, 1.0))
    registry.available = False
    for _ in range(3):
        fetcher.look()
    assert looked.stat().st_mtime == 1.0
    assert served(versions) == 1
    assert versions.role("champion").problem == "the registry in memory was told to be away"
    registry.available = True
    fetcher.look()
    assert versions.role("champion").problem is None
    assert told == ["the registry in memory was told to be away", "champion is version 1"]


def test_an_mlflow_that_is_away_is_told_once_in_the_same_words(
    versions: ServedVersions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    here_before = InMemoryRegistry()
    register(here_before, tmp_path, 1)
    here_before.set_alias("pets", "champion", 1)
    VersionFetcher(versions, here_before, "champion", tell=lambda _: None).look()
    told: list[str] = []
    registry = MlflowRegistry(f"http://me:secret@127.0.0.1:{free_port()}")
    fetcher = VersionFetcher(versions, registry, "champion", tell=told.append)
    fetcher.look()
    before = versions.changed("champion")
    fetcher.look()
    fetcher.look()
    assert versions.changed("champion") == before
    assert [line.partition("@")[0] for line in told] == ["MLflow at http://me:***"]
    assert served(versions) == 1


def test_a_version_whose_artifact_is_not_whole_is_refused_and_the_old_one_stays(
    tracking_uri: str, versions: ServedVersions, tmp_path: Path
) -> None:
    registry, told = MlflowRegistry(tracking_uri), list[str]()
    register(registry, tmp_path, 1, 2)
    registry.set_alias("pets", "champion", 1)
    fetcher = VersionFetcher(versions, registry, "champion", tell=told.append)
    fetcher.look()
    database = sqlite_file(tracking_uri)
    assert database is not None
    second = registry.find("pets", 2)
    assert second is not None
    (folder,) = database.parent.rglob(f"{str(second.snapshot_sha256)[:16]}/artifacts/servable")
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").unlink()
    registry.set_alias("pets", "champion", 2)
    for _ in range(2):
        fetcher.look()
    assert served(versions) == 1
    assert here(versions) == {versions.role("champion").served.name}  # type: ignore[union-attr]
    (line,) = told
    assert line.startswith("version 2 is refused: its artifact is not whole (")
    assert versions.role("champion").problem == line
    (folder / "weights.safetensors").write_bytes(weights)
    fetcher.look()
    assert (served(versions), told[1:]) == (2, ["champion is version 2"])


def test_a_disk_that_takes_nothing_is_told_and_ends_nothing(
    versions: ServedVersions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, told = InMemoryRegistry(), list[str]()
    register(registry, tmp_path, 1)
    registry.set_alias("pets", "champion", 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    fetcher = VersionFetcher(versions, registry, "champion", tell=told.append)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "fetch_servable", full)
        patch.setattr("model_store.served_versions.replace_file", full)
        fetcher.look()
    assert ["No space left" in line for line in told] == [True, True]
    fetcher.look()
    assert served(versions) == 1


def test_fetchers_of_both_roles_share_a_folder(tracking_uri: str, versions: ServedVersions, tmp_path: Path) -> None:
    """And both roles' predictors here may have two each, of the same version."""
    registry = MlflowRegistry(tracking_uri)
    register(registry, tmp_path, 1, 2)
    registry.set_alias("pets", "champion", 1)
    told: list[str] = []

    def follow(role: Any) -> None:
        own = MlflowRegistry(tracking_uri)
        fetcher = VersionFetcher(ServedVersions(versions.folder, "pets"), own, role, tell=told.append)
        for _ in range(3):
            fetcher.look()

    assert together(*[lambda role=role: follow(role) for role in ("champion", "challenger") * 2]) == []
    assert told == []
    assert served(versions) == 1
    challenger = versions.role("challenger").served
    assert challenger is not None
    assert Classifier.load(versions.path(challenger)).class_names
    assert len(here(versions)) == 2


# -- the process ---------------------------------------------------------------------------------------------------


def arguments(versions: ServedVersions, tracking_uri: str, look_seconds: float) -> list[str]:
    given = ["--models", str(versions.folder), "--stream", "pets", "--role", "champion"]
    return [*given, "--tracking-uri", tracking_uri, "--look-seconds", str(look_seconds)]


@contextmanager
def running(versions: ServedVersions, tracking_uri: str, look_seconds: float) -> Iterator[ChildProcess]:
    process = ChildProcess(
        "model_store.version_fetcher",
        arguments(versions, tracking_uri, look_seconds),
        log_file=versions.folder / "fetcher.log",
    )
    process.start()
    try:
        yield process
    finally:
        process.close(30.0)


def test_the_process_looks_at_once_where_it_is_nudged_and_ends_with_its_stdin(
    tracking_uri: str, versions: ServedVersions, tmp_path: Path
) -> None:
    registry = MlflowRegistry(tracking_uri)
    register(registry, tmp_path, 1, 2)
    with running(versions, tracking_uri, 60.0) as process:
        wait_until(lambda: versions.role("champion").problem is not None)  # its first look
        registry.set_alias("pets", "champion", 2)
        began = time.monotonic()
        process.nudge()
        wait_until(lambda: served(versions) == 2)
        registry.set_alias("pets", "champion", 1)
        process.nudge()
        wait_until(lambda: served(versions) == 1)
        assert time.monotonic() - began < 30
        assert process.process_id is not None
        began = time.monotonic()
        process.close(30.0)
        assert time.monotonic() - began < 20, "it ended by itself, and did not sleep to its next look"
        process.nudge()  # nobody is there to hear it
    told = (versions.folder / "fetcher.log").read_text().splitlines()
    assert [line.partition(":")[0] for line in told] == [
        "model 'pets' has no alias 'champion'",
        "champion is version 2",
    ]


def test_the_process_follows_by_itself_and_ends_where_its_parent_is_killed(
    tracking_uri: str, versions: ServedVersions, tmp_path: Path
) -> None:
    registry = MlflowRegistry(tracking_uri)
    register(registry, tmp_path, 1, 2)
    registry.set_alias("pets", "champion", 1)
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from model_store.child_process import ChildProcess\n"
        "child = ChildProcess('model_store.version_fetcher', sys.argv[2:], log_file=Path(sys.argv[1]))\n"
        "child.start()\n"
        "print(child.process_id, flush=True)\n"
        "time.sleep(1000)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log"), *arguments(versions, tracking_uri, 0.1)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            fetcher = int(parent.stdout.readline())
            wait_until(lambda: served(versions) == 1)
            registry.set_alias("pets", "champion", 2)
            wait_until(lambda: served(versions) == 2)
            assert runs(fetcher)
        finally:
            parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not runs(fetcher))


def runs(process_id: int) -> bool:
    """A zombie, whose new parent has not asked after it yet, does not."""
    try:
        os.kill(process_id, 0)
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_database_that_is_not_there_is_not_made_and_found_when_it_comes(
    tracking_uri: str, versions: ServedVersions, tmp_path: Path
) -> None:
    database = sqlite_file(tracking_uri)
    assert database is not None
    register(MlflowRegistry(tracking_uri), tmp_path, 1)
    MlflowRegistry(tracking_uri).set_alias("pets", "champion", 1)
    elsewhere = tmp_path / "mistyped" / "mlflow.db"
    with running(versions, f"sqlite:///{elsewhere}", 0.1):
        wait_until(lambda: versions.role("champion").problem is not None)
        said = str(versions.role("champion").problem)
        assert said.startswith(f"there is no MLflow database {elsewhere}: name the one that has the versions with ")
        time.sleep(0.5)  # looks more
        assert not elsewhere.parent.exists()
        elsewhere.parent.mkdir()
        shutil.copy(database, elsewhere)
        wait_until(lambda: served(versions) == 1)
    told = (versions.folder / "fetcher.log").read_text().splitlines()
    assert told == [said, "champion is version 1"]


def test_another_stream_s_folder_is_one_line_and_an_exit_code(tracking_uri: str, versions: ServedVersions) -> None:
    (versions.folder / "champion.json").write_text('{"format_version": 1, "stream": "shoes"}')
    done = subprocess.run(
        [sys.executable, "-m", "model_store.version_fetcher", *arguments(versions, tracking_uri, 1.0)],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "holds versions of stream 'shoes', not of 'pets'" in line
