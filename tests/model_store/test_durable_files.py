"""What was made is there after a power cut: each name is synced in the folder that holds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model_store.durable_files import make_folder, new_folder, remove_temporary, temporary_sibling


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were synced, in their order, each with the names that it had then."""
    paths: list[Path] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_each_folder_that_is_made_is_made_durable(tmp_path: Path, synced: list[Path]) -> None:
    make_folder(tmp_path / "state" / "registrations" / "pending")
    assert synced == [tmp_path, tmp_path / "state", tmp_path / "state" / "registrations"]
    synced.clear()
    make_folder(tmp_path / "state" / "registrations" / "pending")
    assert synced == []
    with new_folder(tmp_path / "state" / "snapshots" / "one") as temporary:
        (temporary / "servable").mkdir()
        assert synced == [tmp_path / "state"], "before anything is filled, and so before its offsets are told"
        synced.clear()
    assert synced == [temporary, temporary / "servable", tmp_path / "state" / "snapshots"]


def test_a_file_in_the_way_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        make_folder(tmp_path / "file" / "folder")
    with pytest.raises(OSError, match="Not a directory"), new_folder(tmp_path / "file" / "folder"):
        pass


def test_temporary_ones_are_found_by_what_they_were_to_become(tmp_path: Path) -> None:
    file, folder, other = (temporary_sibling(tmp_path / name) for name in ("a.json", "a.json", "b"))
    file.touch()
    folder.mkdir()
    (folder / "x").touch()
    other.symlink_to(tmp_path)
    (tmp_path / "a.json").touch()
    assert set(remove_temporary(tmp_path, "a.json")) == {file, folder}
    assert remove_temporary(tmp_path) == [other]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert remove_temporary(tmp_path / "nowhere") == []
