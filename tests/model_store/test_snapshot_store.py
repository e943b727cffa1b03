"""A snapshot is whole or absent; what is broken is passed over, loudly."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import resource
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store.durable_files import TEMPORARY_PREFIX
from model_store.fault_points import on_fault_point
from model_store.manifest import MANIFEST_FILE, NotWhole, canonical_json
from model_store.snapshot import OutboxMessage, Snapshot
from model_store.snapshot_folder import read_manifest, read_snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.record import Partition
from pipeline.state import Json, StateTree, fingerprint
from pipeline.user_error import UserError
from tests.model_store.killed_writer import KilledWriter, forgotten, killed_writer


def state(number: int = 0) -> StateTree:
    draws = np.random.default_rng(number)
    learner: StateTree = {
        "weights": torch.from_numpy(draws.standard_normal((3, 5)).astype(np.float32)),
        "moments": torch.from_numpy(draws.standard_normal(4)).to(torch.bfloat16),
        "updates": 7 + number,
    }
    reservoir: StateTree = {"x": torch.arange(12, dtype=torch.uint8).reshape(3, 4), "filled": 3}
    return {
        "learner": learner,
        "reservoir": reservoir,
        "empty": torch.zeros(0, dtype=torch.bool),
        "scalar": torch.tensor(2.5),
        "classes": ["köln", "a/b", "7"],
        "worst": math.nan,
        "nothing": None,
        "drift": {},
    }


OUTBOX = (
    OutboxMessage("s.dead-letters", b"\x00key", b"\xff\xfe", (("h", b"\x80"), ("h", None), ("é", b""))),
    OutboxMessage("s.events", None, None),
)
NOW = datetime(2026, 5, 1, tzinfo=UTC)
OFFSETS = {Partition("s.samples", 1): 40, Partition("s.samples", 0): 12}


def snapshot(generation: int = 1, sequence: int = 1, **changes: Any) -> Snapshot:
    whole = Snapshot(
        generation=generation,
        sequence=sequence,
        state=state(sequence),
        offsets=OFFSETS,
        facts={"stream": "s", "branch": "main", "settings": {"lr": 0.03}, "last_records": [["s.samples", 0, 11, "ab"]]},
        outbox=OUTBOX,
    )
    return replace(whole, **changes)


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and seal it again, as somebody would who knows how."""
    path = folder / MANIFEST_FILE
    document = json.loads(path.read_bytes())
    del document["seal"]
    change(document)
    document["seal"] = hashlib.sha256(canonical_json(document)).hexdigest()
    path.write_bytes(canonical_json(document))


def block(name: str, **changes: Any) -> dict[str, Any]:
    """A block's line in a manifest."""
    return {"name": name, "bytes": 0, "sha256": "0" * 64, **changes}


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots")


def test_round_trip(store: SnapshotStore) -> None:
    written = store.write(snapshot(3, 17))
    assert written.path.name == "000003-0000000017"
    assert sorted(path.name for path in written.path.iterdir()) == [
        "manifest.json",
        "outbox.jsonl",
        "state.json",
        "state.safetensors",
    ]
    (entry,) = SnapshotStore(store.folder).entries()
    assert entry == written
    assert (entry.number, entry.offsets, entry.facts["stream"]) == ((3, 17), OFFSETS, "s")
    loaded = store.load(entry)
    assert (loaded.outbox, loaded.offsets, loaded.facts) == (OUTBOX, OFFSETS, snapshot().facts)
    assert fingerprint(loaded.state) == fingerprint(state(17))
    learner = loaded.state["learner"]
    assert isinstance(learner, dict)
    assert learner["updates"] == 24
    assert isinstance(learner["moments"], torch.Tensor)
    assert learner["moments"].dtype is torch.bfloat16
    assert math.isnan(loaded.state["worst"])  # type: ignore[arg-type]
    assert loaded.state["drift"] == {}


def test_views_of_one_tensor_are_saved_as_tensors_of_their_own(store: SnapshotStore) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tree: StateTree = {"whole": whole, "row": whole[0], "turned": whole.T, "again": whole}
    loaded = store.load(store.write(snapshot(state=tree)))
    assert fingerprint(loaded.state) == fingerprint(tree)


def test_a_state_without_tensors(store: SnapshotStore) -> None:
    loaded = store.load(store.write(snapshot(state={"learner": {}, "records_consumed": 0}, outbox=())))
    assert loaded.state == {"learner": {}, "records_consumed": 0}
    assert loaded.outbox == ()


def test_order_is_by_generation_then_sequence_never_by_offsets(store: SnapshotStore) -> None:
    ahead = {Partition("s.samples", 0): 10_000}
    for generation, sequence in ((2, 3), (1, 9), (2, 1), (10, 2)):
        store.write(snapshot(generation, sequence, offsets=ahead if generation == 1 else OFFSETS))
    assert [entry.number for entry in store.entries()] == [(1, 9), (2, 1), (2, 3), (10, 2)]
    found = store.newest_whole()
    assert found.snapshot is not None
    assert (found.snapshot.generation, found.snapshot.sequence) == (10, 2)
    assert found.passed_over == ()


def test_nothing_there(store: SnapshotStore, tmp_path: Path) -> None:
    found = store.newest_whole()
    assert (found.snapshot, found.entry, found.passed_over, store.entries()) == (None, None, (), [])
    assert not store.folder.exists()
    assert store.prune(1) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        SnapshotStore(tmp_path / "file")


@pytest.mark.parametrize("name", ["manifest.json", "state.safetensors", "state.json", "outbox.jsonl"])
def test_a_flipped_bit_anywhere_is_found(store: SnapshotStore, name: str) -> None:
    small: StateTree = {"w": torch.tensor([1.0, 2.0]), "n": 5}
    store.write(snapshot(1, 1, state=small))
    newer = store.write(snapshot(1, 2, state=small))
    path = newer.path / name
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        try:
            found = store.newest_whole()
        except UserError:
            pytest.fail(f"byte {position} of {name}: taken for another release's")
        if name == "manifest.json" and json.loads(good) == _parsed(bytes(bad)):
            continue  # one white space for another says the same
        assert found.entry is not None
        assert found.entry.number == (1, 1), f"byte {position} of {name}"
        assert [problem.path for problem in found.passed_over] == [newer.path]
    path.write_bytes(good)
    assert store.newest_whole().entry == newer


def _parsed(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize("name", ["manifest.json", "state.safetensors", "state.json", "outbox.jsonl"])
@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "longer"])
def test_a_file_that_is_not_whole(store: SnapshotStore, name: str, fault: str) -> None:
    older = store.write(snapshot(1, 1))
    newer = store.write(snapshot(1, 2))
    path = newer.path / name
    if fault == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "truncated": content[:-2], "longer": content + b"x"}[fault])
    found = store.newest_whole()
    assert found.entry == older
    assert len(found.passed_over) == 1
    assert name in found.passed_over[0].why
    if name == "manifest.json":
        assert store.entries() == [older]
        assert store.broken() == list(found.passed_over)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["files"][0].update(name="../../1/state.safetensors"),
        lambda d: d["files"][0].update(name="/etc/passwd"),
        lambda d: d["files"].append(dict(d["files"][0])),
        lambda d: d["files"].pop(),
        lambda d: d["files"][1].update(bytes=-1),
        lambda d: d["files"][1].update(bytes="12"),
        lambda d: d["files"][1].update(sha256="0" * 63),
        lambda d: d["offsets"][0].update(offset=-5),
        lambda d: d["offsets"][0].update(offset=1.0),
        lambda d: d["files"][1].update(bytes=10**18),
        lambda d: d["files"][0].update(name="sub/state.safetensors"),
        lambda d: d["files"][0].update(name=".."),
        lambda d: d["blocks"].append(block("../000001-0000000009/block-x-0000.safetensors")),
        lambda d: d["blocks"].append(block("block-../x-0000.safetensors")),
        lambda d: d["blocks"].append(block("/block-x-0000.safetensors")),
        lambda d: d["blocks"].append(block("block-x-0000.safetensors\n")),
        lambda d: d["blocks"].append(block("block-x-٠٠٠٠.safetensors")),
        lambda d: d["blocks"].append(block("block-" + "x" * 200 + "-0000.safetensors")),
        lambda d: d["blocks"].append(block("state.json")),
        lambda d: d["blocks"].append(block("block-x-0001.safetensors")),
        lambda d: d["blocks"].extend([block("block-x-0000.safetensors")] * 2),
        lambda d: d["blocks"].extend([block("block-x-0000.safetensors")] * 60_001),
        lambda d: d["blocks"].append(block("block-x-0000.safetensors", bytes=-1)),
        lambda d: d.update(written_at="yesterday"),
        lambda d: d.update(written_at="2026-01-01T00:00:00"),
        lambda d: d.update(format_version=1),
        lambda d: d.pop("blocks"),
        lambda d: d.update(surprise=1),
        lambda d: d.update(generation=9),
        lambda d: d.update(format_version="1"),
        lambda d: d.update(format_version=True),
        lambda d: d.pop("facts"),
    ],
)
def test_a_crafted_manifest_is_refused(store: SnapshotStore, change: Callable[[dict[str, Any]], None]) -> None:
    entry = store.write(snapshot())
    forge(entry.path, change)
    found = store.newest_whole()
    assert found.snapshot is None
    assert [problem.path for problem in found.passed_over] == [entry.path]


@pytest.mark.parametrize("content", [b"[]", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"1" * 5000])
def test_a_manifest_that_is_something_else(store: SnapshotStore, content: bytes) -> None:
    entry = store.write(snapshot())
    (entry.path / MANIFEST_FILE).write_bytes(content)
    assert len(store.newest_whole().passed_over) == 1


def test_another_release_s_format_is_not_taken_for_a_broken_one(store: SnapshotStore) -> None:
    store.write(snapshot(1, 1))
    entry = store.write(snapshot(1, 2))
    forge(entry.path, lambda d: d.update(format_version=3, novelty=[]))
    for ask in (store.newest_whole, store.entries):
        with pytest.raises(UserError, match=r"format version 3, this release reads 1 and 2; .*--state"):
            ask()


def _safetensors(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        _safetensors({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, b"\0" * 8),
        _safetensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, b"\0" * 8),
        _safetensors({"w": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 0]}}, b""),
        _safetensors({"w": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8),
        _safetensors({"worst": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\0"),
        _safetensors({"classes/x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\0"),
        _safetensors({"w": {"dtype": "F32", "shape": [0, 10**12], "data_offsets": [0, 0]}}, b""),
        _safetensors({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, b"\0" * 16),
        struct.pack("<Q", 1 << 60) + b"{}",
        b"\x80\x04\x95",
    ],
    ids=[
        "huge shape",
        "shape and size differ",
        "overflow",
        "unknown dtype",
        "twice",
        "under a leaf",
        "columns without rows",
        "negative size",
        "header",
        "pickle",
    ],
)
def test_crafted_tensors_are_refused(store: SnapshotStore, content: bytes) -> None:
    entry = store.write(snapshot())
    (entry.path / "state.safetensors").write_bytes(content)

    def change(document: dict[str, Any]) -> None:
        document["files"][0].update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    forge(entry.path, change)
    (forged,) = store.entries()
    with pytest.raises(NotWhole):
        store.load(forged)


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"topic":1,"key":null,"value":null,"headers":[]}',
        b'{"topic":"t","key":"***","value":null,"headers":[]}',
        b'{"topic":"t","key":null,"value":null,"headers":[1]}',
    ],
)
def test_a_crafted_outbox_is_refused(store: SnapshotStore, line: bytes) -> None:
    entry = store.write(snapshot())
    (entry.path / "outbox.jsonl").write_bytes(line + b"\n")

    def change(document: dict[str, Any]) -> None:
        document["files"][2].update(bytes=len(line) + 1, sha256=hashlib.sha256(line + b"\n").hexdigest())

    forge(entry.path, change)
    assert "not a message" in store.newest_whole().passed_over[0].why


def test_prune(store: SnapshotStore) -> None:
    for sequence in range(1, 7):
        store.write(snapshot(1, sequence))
    (store.folder / "000001-0000000002" / MANIFEST_FILE).unlink()
    (store.folder / "000001-0000000005" / MANIFEST_FILE).unlink()
    leftover = store.folder / f"{TEMPORARY_PREFIX}abc-000001-0000000007"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    stranger = store.folder / "notes"
    stranger.mkdir()
    removed = store.prune(2, pinned={(1, 1)})
    # 4 and 6 are the two newest good ones, 1 is pinned, 5 is newer than 4 and stays as evidence.
    assert sorted(path.name[-1] for path in removed) == ["2", "3"]
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "000001-0000000001",
        "000001-0000000004",
        "000001-0000000005",
        "000001-0000000006",
        "notes",
    ]
    assert store.prune(2, pinned={(1, 1)}) == []
    with pytest.raises(ValueError, match="at least the newest"):
        store.prune(0)


def test_a_pin_holds_by_the_name_from_before_a_rewriting(store: SnapshotStore) -> None:
    first = store.write(snapshot(1, 1))
    facts: dict[str, Json] = {**first.facts, "former_sha256": [first.sha256]}
    rewritten = store.rewrite(first, replace(snapshot(1, 1), state={"other": 1}, facts=facts))
    assert rewritten.sha256 != first.sha256
    for sequence in (2, 3):
        store.write(snapshot(1, sequence))
    assert [path.name[-1] for path in SnapshotStore(store.folder).prune(1, pinned_sha256={first.sha256})] == ["2"]
    assert [path.name[-1] for path in SnapshotStore(store.folder).prune(1)] == ["1"]


def test_prune_by_age(store: SnapshotStore) -> None:
    entries = [store.write(snapshot(1, sequence)) for sequence in range(1, 7)]
    for days, entry in zip((50, 40, 30, 20, 10, 5), entries, strict=True):
        written = (NOW - timedelta(days=days)).isoformat(timespec="milliseconds")
        forge(entry.path, lambda d, at=written: d.update(written_at=at))  # type: ignore[misc]
    another = SnapshotStore(store.folder)
    kept = another.entries()
    day = 86_400.0
    # 2 and 3 are too old although they are among the newest five; 1 is pinned; age alone deletes nothing younger.
    removed = another.prune(5, pinned={(1, 1)}, max_age_seconds=25 * day, now=NOW)
    assert [path.name[-1] for path in removed] == ["2", "3"]
    assert another.prune(5, pinned_sha256={kept[0].sha256}, max_age_seconds=25 * day, now=NOW) == []
    # The two newest stay whatever their age, the last loaded one too, and the count still counts.
    another.load(kept[3])
    removed = another.prune(5, max_age_seconds=1.0, now=NOW)
    assert [path.name[-1] for path in removed] == ["1"]
    assert [entry.sequence for entry in another.entries()] == [4, 5, 6]
    removed = SnapshotStore(store.folder).prune(1, max_age_seconds=100 * day, now=NOW)
    assert [path.name[-1] for path in removed] == ["4", "5"]


def test_after_a_lull_there_is_still_one_to_fall_back_to(store: SnapshotStore) -> None:
    """A month without a record, then a commit; or a clock that jumps ahead. Then a byte of the newest decays."""
    for sequence in (1, 2, 3):
        store.write(snapshot(1, sequence))
    newest = store.write(snapshot(1, 4))
    store.prune(5, max_age_seconds=30 * 86_400.0, now=datetime.now(UTC) + timedelta(days=31))
    (newest.path / "state.json").write_bytes(b"{}")
    found = SnapshotStore(store.folder).newest_whole()
    assert found.entry is not None
    assert found.entry.sequence == 3


def test_prune_keeps_what_was_written_last_where_a_newer_manifest_is_good_and_its_tensors_are_not(
    store: SnapshotStore,
) -> None:
    store.write(snapshot(1, 1))
    newer = store.write(snapshot(1, 2))
    (newer.path / "state.safetensors").unlink()
    restarted = SnapshotStore(store.folder)
    found = restarted.newest_whole()
    assert found.entry is not None
    restarted.prune(1)
    assert [entry.sequence for entry in restarted.entries()] == [1, 2]


@pytest.fixture(scope="module")
def writer() -> Iterator[KilledWriter]:
    with killed_writer() as started:
        yield started


WRITE_POINTS = (
    "snapshot.begun",
    "snapshot.tensors_written",
    "snapshot.state_written",
    "snapshot.manifest_written",
    "snapshot.renamed",
)


def test_fault_points_of_a_write_come_in_their_order(store: SnapshotStore) -> None:
    passed: list[str] = []
    on_fault_point(passed.append)
    try:
        store.write(snapshot())
    finally:
        on_fault_point(None)
    assert tuple(passed) == WRITE_POINTS


@pytest.mark.parametrize("point", WRITE_POINTS)
def test_killed_while_writing(store: SnapshotStore, writer: KilledWriter, point: str) -> None:
    store.write(snapshot(1, 1))
    writer.kill_at(point, "write the second", store.folder)
    restarted = SnapshotStore(store.folder)
    found = restarted.newest_whole()
    assert found.entry is not None
    assert (found.entry.sequence, found.passed_over) == (2 if point == "snapshot.renamed" else 1, ())
    leftovers = list(store.folder.glob(".*"))
    assert len(leftovers) == (0 if point == "snapshot.renamed" else 1)
    assert restarted.remove_leftovers() == leftovers
    assert list(store.folder.glob(".*")) == []


def test_rewrite(store: SnapshotStore) -> None:
    entries = [store.write(snapshot(1, sequence)) for sequence in (1, 2, 3)]
    rewritten = store.rewrite(entries[1], forgotten(2))
    assert rewritten.linked_bytes == 0
    assert rewritten.sha256 != entries[1].sha256
    assert SnapshotStore(store.folder).entries() == [entries[0], rewritten, entries[2]]
    assert store.load(rewritten).fingerprint() == forgotten(2).fingerprint()
    assert sorted(path.name for path in store.folder.iterdir()) == [entry.path.name for entry in entries]
    with pytest.raises(AssertionError, match="keeps its numbers"):
        store.rewrite(rewritten, snapshot(1, 7))


@pytest.mark.parametrize("point", [*WRITE_POINTS[:-1], "rewrite.written", "rewrite.old_away", "rewrite.renamed"])
def test_killed_while_rewriting(store: SnapshotStore, writer: KilledWriter, point: str) -> None:
    """Whenever: the old or the new one is there, whole, under its name, for whoever looks first."""
    entry = store.write(snapshot(1, 2))
    new = forgotten(2)
    writer.kill_at(point, "rewrite the oldest", store.folder)
    is_new = point in ("rewrite.old_away", "rewrite.renamed")
    restarted = SnapshotStore(store.folder)
    (found,) = restarted.entries()
    assert found.path == entry.path
    assert restarted.load(found).fingerprint() == (new if is_new else snapshot(1, 2)).fingerprint()
    assert restarted.broken() == []
    restarted.remove_leftovers()
    assert list(store.folder.iterdir()) == [entry.path]
    # What was left over never comes back in the place of a snapshot that was removed later.
    assert restarted.rewrite(found, new).path == entry.path
    restarted.remove(entry.path)
    assert restarted.entries() == []


def test_an_unfinished_rewrite_does_not_bring_a_pruned_snapshot_back(
    store: SnapshotStore, writer: KilledWriter
) -> None:
    store.write(snapshot(1, 1))
    writer.kill_at("rewrite.written", "rewrite the oldest", store.folder)
    restarted = SnapshotStore(store.folder)
    restarted.write(snapshot(1, 2))
    restarted.prune(1)
    assert [kept.sequence for kept in restarted.entries()] == [2]


@pytest.mark.parametrize("point", ["rewrite.written", "rewrite.old_away"])
def test_an_unfinished_rewrite_does_not_bring_a_removed_snapshot_back(
    store: SnapshotStore, writer: KilledWriter, point: str
) -> None:
    entry = store.write(snapshot(1, 1))
    writer.kill_at(point, "rewrite the oldest", store.folder)
    restarted = SnapshotStore(store.folder)
    restarted.remove(entry.path)
    assert SnapshotStore(store.folder).entries() == []
    restarted.remove_leftovers()
    assert list(store.folder.iterdir()) == []


def test_what_stands_beside_a_snapshot_that_is_pruned_while_another_is_written_goes_with_it(
    store: SnapshotStore, writer: KilledWriter
) -> None:
    entry = store.write(snapshot(1, 1))
    writer.kill_at("rewrite.written", "rewrite the oldest", store.folder)
    store.write(snapshot(1, 2))
    removed: list[Path] = []
    on_fault_point(lambda name: removed.extend(store.prune(1)) if name == "snapshot.begun" else None)
    try:
        store.write(snapshot(1, 3))
    finally:
        on_fault_point(None)
    assert removed == [entry.path]
    assert [kept.sequence for kept in SnapshotStore(store.folder).entries()] == [2, 3]


def test_a_rewriting_that_was_killed_is_begun_anew(store: SnapshotStore, writer: KilledWriter) -> None:
    store.write(snapshot(1, 2))
    writer.kill_at("rewrite.old_away", "rewrite the oldest", store.folder)
    restarted = SnapshotStore(store.folder)
    (unfinished,) = restarted.entries()
    again = restarted.rewrite(unfinished, snapshot(1, 2))
    assert SnapshotStore(store.folder).entries() == [again]
    assert restarted.load(again).fingerprint() == snapshot(1, 2).fingerprint()


def content_of(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path.relative_to(folder)), path.lstat().st_mtime_ns) for path in [folder, *folder.rglob("*")])


def test_reading_changes_nothing_and_sees_an_unfinished_rewrite_as_what_it_is_to_become(
    store: SnapshotStore, writer: KilledWriter
) -> None:
    entry = store.write(snapshot(1, 2))
    writer.kill_at("rewrite.old_away", "rewrite the oldest", store.folder)
    half = store.folder / ".new-000001-0000000001"
    half.mkdir()
    before = content_of(store.folder)
    reader = SnapshotStore(store.folder)
    found = reader.newest_whole()
    assert (found.entry, reader.entries(), reader.broken()) == (found.entry, [found.entry], [])
    assert found.entry is not None
    assert found.entry.path == entry.path
    assert reader.load(found.entry).fingerprint() == forgotten(2).fingerprint()
    assert content_of(store.folder) == before
    # Who may write goes on from there.
    assert reader.prune(2) == []
    assert list(store.folder.iterdir()) == [entry.path]
    later = [reader.write(snapshot(1, sequence)) for sequence in (3, 4)]
    assert SnapshotStore(store.folder).entries() == [found.entry, *later]


def test_what_is_pruned_while_it_is_read_is_not_told_to_be_broken(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [store.write(snapshot(1, sequence)) for sequence in (1, 2)]
    pruned = entries[0].path

    def prune_first(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(folder: Path, *rest: Any) -> Any:
            if folder == pruned and folder.is_dir():
                SnapshotStore(store.folder).remove(folder)
            return read(folder, *rest)

        return reading

    monkeypatch.setattr("model_store.snapshot_store.read_manifest", prune_first(read_manifest))
    assert store.broken() == []
    assert store.entries() == entries[1:]
    pruned = entries[1].path
    monkeypatch.setattr("model_store.snapshot_store.read_snapshot", prune_first(read_snapshot))
    assert store.newest_whole().passed_over == ()


def test_leftovers_are_what_is_no_snapshot(store: SnapshotStore) -> None:
    good, bad = store.write(snapshot(1, 1)), store.write(snapshot(1, 2))
    (bad.path / MANIFEST_FILE).unlink()
    half = store.folder / ".new-000001-0000000009"
    half.mkdir()
    (half / "state.json").write_bytes(b"{}")
    temporary = store.folder / f"{TEMPORARY_PREFIX}x"
    temporary.mkdir()
    (store.folder / "notes").mkdir()
    assert sorted(store.remove_leftovers()) == sorted([half, temporary, bad.path])
    assert sorted(store.folder.iterdir()) == sorted([good.path, store.folder / "notes"])


@pytest.mark.parametrize("name", ["manifest.json", "state.safetensors", "state.json", "outbox.jsonl"])
def test_links_are_not_followed(store: SnapshotStore, tmp_path: Path, name: str) -> None:
    entry = store.write(snapshot())
    outside = tmp_path / "outside"
    (entry.path / name).rename(outside)
    (entry.path / name).symlink_to(outside)  # the very bytes, with the right sum
    (problem,) = store.newest_whole().passed_over
    assert problem.why == f"{name} is a link, which may lead anywhere"


def test_a_snapshot_that_is_a_link_is_refused_and_only_the_link_is_removed(
    store: SnapshotStore, tmp_path: Path
) -> None:
    entry = store.write(snapshot(1, 1))
    elsewhere = tmp_path / "elsewhere"
    entry.path.rename(elsewhere)
    entry.path.symlink_to(elsewhere)
    (problem,) = store.newest_whole().passed_over
    assert problem.why == "it is a link, a snapshot is a folder"
    store.remove_leftovers()
    assert list(store.folder.iterdir()) == []
    assert (elsewhere / MANIFEST_FILE).is_file()


def test_a_pipe_in_the_place_of_a_file_does_not_hang(store: SnapshotStore) -> None:
    entry = store.write(snapshot())
    (entry.path / "state.json").unlink()
    os.mkfifo(entry.path / "state.json")
    assert store.newest_whole().passed_over[0].why == "state.json is not a file"


def test_huge_json_is_refused_before_it_is_read(store: SnapshotStore) -> None:
    entry = store.write(snapshot())
    with (entry.path / "state.json").open("r+b") as file:
        file.truncate(1 << 36)  # a hole: takes no room on the disk
    forge(entry.path, lambda d: d["files"][1].update(bytes=1 << 36))
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
        assert "state.json is larger than 268435456 bytes" in store.newest_whole().passed_over[0].why
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_write_that_fails_leaves_nothing_and_may_be_tried_again(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == MANIFEST_FILE:
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr("model_store.snapshot_folder.write_file", full)
        with pytest.raises(OSError, match="No space"):
            store.write(snapshot())
    assert list(store.folder.iterdir()) == []
    # The rename went through but the parent's fsync did not: the caller heard of a failure and comes again.
    with monkeypatch.context() as patch:
        patch.setattr("model_store.durable_files.sync", _failing_at(store.folder))
        with pytest.raises(OSError, match="Input/output"):
            store.write(snapshot())
    again = store.write(snapshot(outbox=()))
    assert [path.name for path in store.folder.iterdir()] == [again.path.name]
    found = store.newest_whole()
    assert found.snapshot is not None
    assert found.snapshot.outbox == ()


def test_tensors_that_do_not_fit_on_the_disk_are_an_os_error(store: SnapshotStore) -> None:
    """A real refusal of the system: files may have 100,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match="File too large") as refused:
            store.write(snapshot(state={"w": torch.zeros(200_000, dtype=torch.uint8)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert refused.value.errno == errno.EFBIG
    assert list(store.folder.iterdir()) == []


def _failing_at(folder: Path) -> Callable[[Path], None]:
    def sync(path: Path) -> None:
        if path == folder:
            raise OSError(5, "Input/output error")

    return sync


def test_several_threads_write_at_once_while_another_prunes(store: SnapshotStore) -> None:
    problems: list[BaseException] = []

    def write(generation: int) -> None:
        try:
            for sequence in range(1, 6):
                store.write(snapshot(generation, sequence))
                store.prune(100)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(generation,)) for generation in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    entries = store.entries()
    assert len(entries) == 15
    for entry in entries:
        store.load(entry)


def test_fingerprint_and_sha256_name_what_was_learnt(store: SnapshotStore) -> None:
    first = store.write(snapshot(1, 1, state=state(0)))
    same = store.write(snapshot(2, 5, state=state(0), facts={"thread_count": 4}, outbox=()))
    moved = store.write(snapshot(2, 6, state=state(0), offsets={Partition("s.samples", 0): 13}))
    other = store.write(snapshot(2, 7, state=state(1)))
    assert store.load(first).fingerprint() == store.load(same).fingerprint() == snapshot(state=state(0)).fingerprint()
    assert first.sha256 == same.sha256
    assert len({store.load(entry).fingerprint() for entry in (first, moved, other)}) == 3
    assert len({entry.sha256 for entry in (first, moved, other)}) == 3
    read_again = SnapshotStore(store.folder).entries()[0]
    assert read_again.sha256 == first.sha256
