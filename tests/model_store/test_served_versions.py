"""Versions on local disk: fetched whole or not at all, by several at once, and let go of."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model_store import served_versions
from model_store.registry import InMemoryRegistry, RegisteredVersion, RegistryUnavailable
from model_store.served_versions import RoleFile, ServedVersion, ServedVersions
from pipeline.classifier import Classifier
from pipeline.user_error import UserError
from tests.model_store.tiny_servable import request, tiny_classifier

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def versions(tmp_path: Path) -> ServedVersions:
    versions = ServedVersions(tmp_path / "models", "pets")
    versions.prepare()
    return versions


def registered(number: int, **changes: object) -> RegisteredVersion:
    version = RegisteredVersion(
        stream="pets",
        version=number,
        tags={"palimpsest.snapshot_sha256": f"{number:064x}"[::-1]},
        aliases=frozenset(),
        created_at_ms=1_700_000_000_000 + number,
        run_id="r",
    )
    return replace(version, **changes)  # type: ignore[arg-type]


def fetched(_: RegisteredVersion, folder: Path) -> None:
    tiny_classifier().save(folder)


def here(versions: ServedVersions) -> set[str]:
    return {path.name for path in (versions.folder / "versions").iterdir()}


def test_a_version_is_fetched_once_and_opens(versions: ServedVersions) -> None:
    asked: list[int] = []

    def fetch(version: RegisteredVersion, folder: Path) -> None:
        asked.append(version.version)
        fetched(version, folder)

    served = versions.keep(registered(7), fetch)
    assert versions.keep(registered(7), fetch) == served
    assert asked == [7]
    assert (served.version, served.run_id) == (7, "r")
    assert Classifier.load(versions.path(served)).class_names == tiny_classifier().class_names
    versions.drop(served)
    versions.drop(served)
    assert here(versions) == set()
    versions.keep(registered(7), fetch)
    assert asked == [7, 7]


def test_another_mlflow_s_version_of_that_number_is_another_folder(versions: ServedVersions) -> None:
    one = versions.keep(registered(7), fetched)
    other = versions.keep(registered(7, tags={"palimpsest.snapshot_sha256": "f" * 64}), fetched)
    without = versions.keep(registered(7, tags={}), fetched)
    a_moment_later = versions.keep(registered(7, tags={}, created_at_ms=1_700_000_000_008), fetched)
    assert here(versions) == {one.name, other.name, without.name, a_moment_later.name}
    assert len(here(versions)) == 4


@pytest.mark.parametrize("error", [RegistryUnavailable("away"), OSError("disk full"), KeyboardInterrupt()])
def test_a_download_that_breaks_off_leaves_nothing(versions: ServedVersions, error: BaseException) -> None:
    def breaks_off(version: RegisteredVersion, folder: Path) -> None:
        fetched(version, folder)
        (folder / "weights.safetensors").unlink()
        raise error

    with pytest.raises(type(error)):
        versions.keep(registered(7), breaks_off)
    assert here(versions) == set()


def test_a_killed_download_leaves_nothing_under_the_version_s_name_and_goes_in_time(
    versions: ServedVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from model_store.served_versions import ServedVersions\n"
        "from tests.model_store.test_served_versions import fetched, registered\n"
        "def killed(version, folder):\n"
        "    fetched(version, folder)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "ServedVersions(Path(sys.argv[1]), 'pets').keep(registered(7), killed)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, versions.folder], cwd=PROJECT, check=False)
    assert done.returncode == -9
    (left,) = here(versions)
    assert left.startswith(".tmp-")
    assert not (versions.folder / "versions" / left.removeprefix(".tmp-")).exists()
    versions.prune()
    assert here(versions) == {left}, "it may be a download that is under way"
    served = versions.keep(registered(7), fetched)
    assert here(versions) == {left, served.name}
    monkeypatch.setattr(served_versions, "_ABANDONED_SECONDS", -1.0)
    versions.prune()
    assert here(versions) == {served.name}


def test_pruning_keeps_what_roles_name_and_the_newest_few(versions: ServedVersions) -> None:
    kept = [versions.keep(registered(number), fetched) for number in range(1, 9)]
    versions.note("champion", RoleFile(stream="pets", served=kept[0]))
    versions.note("challenger", RoleFile(stream="pets", served=kept[2]))
    versions.prune()
    assert here(versions) == {kept[number].name for number in (0, 2, 5, 6, 7)}
    versions.prune()
    assert len(here(versions)) == 5


def together(*runs: Callable[[], object]) -> list[BaseException]:
    """In a thread each; what they raised."""
    raised: list[BaseException] = []

    def guarded(run: Callable[[], object]) -> None:
        try:
            run()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return raised


def test_two_that_fetch_the_same_version_do_not_disturb_each_other(versions: ServedVersions) -> None:
    """Both are half-way when the other one begins, or ends."""
    half_way = threading.Barrier(2, timeout=30)

    def fetch(_: RegisteredVersion, folder: Path) -> None:
        tiny_classifier().save(folder)
        weights = (folder / "weights.safetensors").read_bytes()
        (folder / "weights.safetensors").unlink()
        half_way.wait()
        (folder / "weights.safetensors").write_bytes(weights)
        half_way.wait()

    other = ServedVersions(versions.folder, "pets")
    assert together(lambda: versions.keep(registered(7), fetch), lambda: other.keep(registered(7), fetch)) == []
    (name,) = here(versions)
    Classifier.load(versions.folder / "versions" / name)


def test_many_of_a_folder_keep_note_and_prune_at_once(tmp_path: Path) -> None:
    registry = InMemoryRegistry()
    made = [registry.register(request(tmp_path / "servable", number)) for number in range(1, 7)]
    folder = tmp_path / "models"

    def work(role: str) -> None:
        versions = ServedVersions(folder, "pets")
        versions.prepare()
        for _ in range(5):
            for version in made:
                served = versions.keep(version, registry.fetch_servable)
                versions.note(role, RoleFile(stream="pets", served=served))  # type: ignore[arg-type]
                versions.prune()

    assert together(*[lambda role=role: work(role) for role in ("champion", "challenger") * 2]) == []
    versions = ServedVersions(folder, "pets")
    assert not [name for name in here(versions) if name.startswith(".tmp-")]
    for path in (folder / "versions").iterdir():
        Classifier.load(path)


def test_what_a_role_is_outlives_the_process_and_is_written_where_it_changes(versions: ServedVersions) -> None:
    assert versions.role("champion") == RoleFile(stream="pets")
    assert versions.changed("champion") is None
    known = RoleFile(stream="pets", served=ServedVersion(version=7, run_id=None, name="7-f"), problem="köln")
    versions.note("champion", known)
    before = versions.changed("champion")
    assert before is not None
    versions.note("champion", known)
    assert versions.changed("champion") == before
    again = ServedVersions(versions.folder, "pets")
    again.prepare()
    assert again.role("champion") == known
    assert again.role("challenger").served is None
    versions.note("champion", known.model_copy(update={"problem": None}))
    assert versions.changed("champion") != before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format_version": 2, "stream": "pets"}']
)
def test_a_role_that_has_decayed_says_nothing_and_is_written_anew(versions: ServedVersions, content: bytes) -> None:
    (versions.folder / "champion.json").write_bytes(content)
    versions.prepare()
    assert versions.role("champion") == RoleFile(stream="pets")
    versions.note("champion", RoleFile(stream="pets"))
    assert b"pets" in (versions.folder / "champion.json").read_bytes()


def test_another_stream_s_folder_is_refused(versions: ServedVersions) -> None:
    versions.note("challenger", RoleFile(stream="pets"))
    with pytest.raises(UserError, match=r"holds versions of stream 'pets', not of 'shoes'; give another --models"):
        ServedVersions(versions.folder, "shoes").prepare()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make the folder of served versions .*; give another --models"):
        ServedVersions(tmp_path / "file" / "models", "pets").prepare()


def test_a_removal_that_was_cut_off_goes_in_time(versions: ServedVersions, monkeypatch: pytest.MonkeyPatch) -> None:
    served = versions.keep(registered(7), fetched)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            versions.drop(served)
    assert not versions.path(served).exists()
    later = time.time() + 7200
    monkeypatch.setattr("model_store.served_versions.time.time", lambda: later)
    versions.prune()
    assert here(versions) == set()
