"""Rows that did not change are linked from the snapshot two before, and never shared with the one before."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_store.manifest import NotWhole
from model_store.row_blocks import BLOCK_NAME, ROW_TENSORS, block_of, cut, joined
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.record import Partition
from pipeline.state import StateTree, fingerprint
from tests.model_store.test_snapshot_store import forge

ROWS, ROW_BYTES = 5000, 1024  # five blocks of 1,024 rows, the last one shorter


def state(seed: int = 0) -> StateTree:
    generator = torch.Generator().manual_seed(seed)
    reservoir: StateTree = {
        "seen": 10_000,
        "x": torch.randint(0, 256, (ROWS, ROW_BYTES), dtype=torch.uint8, generator=generator),
        "y": torch.zeros(ROWS, dtype=torch.int64),  # 40 kB: not worth files of its own
    }
    learner: StateTree = {"reservoir": reservoir, "w": torch.randn(100, generator=generator)}
    return {"learner": learner, "updates": 0}


def snapshot(sequence: int, tree: StateTree, generation: int = 1) -> Snapshot:
    return Snapshot(generation=generation, sequence=sequence, state=tree, offsets={Partition("t", 0): sequence})


def x_of(tree: StateTree) -> Tensor:
    return cast(Tensor, cast(StateTree, cast(StateTree, tree["learner"])["reservoir"])["x"])


def inodes(entry: SnapshotEntry) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in entry.path.iterdir()}


def shared(first: SnapshotEntry, second: SnapshotEntry) -> set[str]:
    """Names of the files that two snapshots have in common."""
    return {name for name, inode in inodes(first).items() if inode in inodes(second).values()}


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots")


def test_cut_and_joined() -> None:
    tensors = {
        "learner/reservoir/x": torch.arange(3 * 2**20, dtype=torch.uint8).reshape(-1, 512),
        "learner/reservoir/logits": torch.zeros(10, 2**20),
        "hold_out/x": torch.zeros(2**18 - 1, dtype=torch.uint8),
        "learner/network/head.weight": torch.zeros(2**20),
    }
    together, blocks = cut(tensors)
    assert sorted(together) == ["hold_out/x", "learner/network/head.weight"]
    assert [(block.file_name, len(block.rows)) for block in blocks] == [
        ("block-learner.reservoir.x-0000.safetensors", 2048),
        ("block-learner.reservoir.x-0001.safetensors", 2048),
        ("block-learner.reservoir.x-0002.safetensors", 2048),
        ("block-learner.reservoir.logits-0000.safetensors", 8),  # a row of 4 MiB: eight rows at least
        ("block-learner.reservoir.logits-0001.safetensors", 2),
    ]
    assert torch.equal(joined([block.rows for block in blocks[:3]]), tensors["learner/reservoir/x"])
    for rows in ([torch.zeros(2, 3), torch.zeros(2, 4)], [torch.zeros(2), torch.zeros(2).int()], [torch.tensor(1)]):
        with pytest.raises(ValueError, match="differ"):
            joined(rows)


@pytest.mark.parametrize("name", sorted(ROW_TENSORS))
def test_every_name_of_a_block_is_one(name: str) -> None:
    _, blocks = cut({name: torch.zeros(2**19)})
    for number, block in enumerate(blocks):
        assert re.match(BLOCK_NAME, block.file_name)
        assert block_of(block.file_name) == (name, number)


def test_most_blocks_of_a_tensor_are_bounded() -> None:
    row = torch.zeros(2**20, dtype=torch.uint8)
    _, blocks = cut({"hold_out/x": row.expand(100_000, 2**20)})  # 98 GiB that are nowhere
    assert len(blocks) == 10_000


def test_only_what_changed_is_written_from_the_third_one_on(store: SnapshotStore) -> None:
    tree = state()
    entries = [store.write(snapshot(sequence, tree)) for sequence in (1, 2)]
    assert [entry.linked_bytes for entry in entries] == [0, 0]
    x_of(tree)[3000] += 1  # in the third block of five
    third = store.write(snapshot(3, tree))
    fourth = store.write(snapshot(4, tree))
    assert (
        shared(entries[0], third)
        == shared(entries[1], fourth)
        == {f"block-learner.reservoir.x-{number:04d}.safetensors" for number in (0, 1, 3, 4)}
    )
    assert shared(entries[1], third) == shared(third, fourth) == shared(entries[0], fourth) == set()
    assert third.written_bytes is not None
    assert third.linked_bytes is not None
    on_disk = sum(path.stat().st_size for path in third.path.iterdir())
    assert third.written_bytes + third.linked_bytes == on_disk
    # one block, the small tensors, three small files
    assert third.written_bytes < 1.1 * 2**20 + ROWS * 8 + 4096
    assert third.linked_bytes > 4 * 2**20 - 300 * ROW_BYTES
    fifth = store.write(snapshot(5, tree))
    assert len(shared(third, fifth)) == 5, "nothing changed in between"
    for entry in store.entries():
        loaded = store.load(entry)
        assert fingerprint(loaded.state)
        if entry.sequence >= 3:
            assert fingerprint(loaded.state) == fingerprint(tree)
    assert torch.equal(
        load_file(fifth.path / "block-learner.reservoir.x-0002.safetensors")["learner/reservoir/x"],
        x_of(tree)[2048:3072],
    )


def test_links_make_no_difference_to_what_it_is(store: SnapshotStore, tmp_path: Path) -> None:
    tree = state()
    for sequence in (1, 2, 3):
        linked = store.write(snapshot(sequence, tree))
    whole = SnapshotStore(tmp_path / "other").write(snapshot(3, tree))
    assert (whole.linked_bytes, len(shared(linked, store.entries()[0]))) == (0, 5)
    assert linked.sha256 == whole.sha256
    assert linked.manifest.blocks == whole.manifest.blocks
    assert store.load(linked).fingerprint() == snapshot(3, tree).fingerprint()
    x_of(tree)[0] += 1
    assert store.write(snapshot(3, tree, generation=2)).sha256 != whole.sha256, "a block is part of the sum"


@pytest.mark.parametrize("sequence", [1, 2, 3, 4])
def test_one_flipped_byte_never_breaks_the_newest_and_the_second_newest(store: SnapshotStore, sequence: int) -> None:
    tree = state()
    entries = [store.write(snapshot(number, tree)) for number in (1, 2, 3, 4)]
    for path in sorted(entries[sequence - 1].path.glob("block-*")):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)  # in place: whoever is linked to it has it too
        found = SnapshotStore(store.folder).newest_whole()
        assert found.entry is not None
        assert found.entry.sequence in (3, 4)
        content[-1] ^= 1
        path.write_bytes(content)


def test_what_decayed_does_not_go_on_after_a_restart(store: SnapshotStore) -> None:
    """A restarted process links only what it has read or written itself."""
    tree = state()
    entries = [store.write(snapshot(number, tree)) for number in (1, 2, 3, 4)]
    broken = entries[3].path / "block-learner.reservoir.x-0001.safetensors"
    content = bytearray(broken.read_bytes())
    content[9] ^= 1
    broken.write_bytes(content)
    restarted = SnapshotStore(store.folder)
    found = restarted.newest_whole()
    assert found.entry == entries[2]
    later = [restarted.write(snapshot(number, tree)) for number in (5, 6, 7)]
    assert shared(later[0], entries[2]) == shared(later[0], entries[3]) == set()
    assert len(shared(later[1], entries[2])) == 5, "two before, and just verified"
    for entry in later:
        restarted.load(entry)


def test_every_so_often_all_is_written_so_that_no_block_is_linked_for_ever(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_store.snapshot_store._WHOLE_EVERY", 6)
    tree = state()
    entries = [store.write(snapshot(number, tree)) for number in range(1, 15)]
    whole = [entry.sequence for entry in entries if not entry.linked_bytes]
    assert whole == [1, 2, 7, 8, 13, 14], "two in a row: what alternates has two lines of links"
    first = entries[0].path / "block-learner.reservoir.x-0000.safetensors"
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    for entry in entries[6:]:
        assert SnapshotStore(store.folder).load(entry).fingerprint()


def test_a_number_that_goes_back_begins_anew(store: SnapshotStore) -> None:
    tree = state()
    for number in (5, 6):
        store.write(snapshot(number, tree))
    assert store.write(snapshot(4, tree)).linked_bytes == 0
    later = [store.write(snapshot(number, tree)) for number in (7, 8, 9)]
    assert [bool(entry.linked_bytes) for entry in later] == [False, False, True]


def test_pruned_meanwhile_it_is_written(store: SnapshotStore) -> None:
    tree = state()
    for number in (1, 2):
        store.write(snapshot(number, tree))
    store.prune(1)
    third = store.write(snapshot(3, tree))
    assert third.linked_bytes == 0
    store.load(third)


def test_a_shortened_block_is_not_linked(store: SnapshotStore) -> None:
    tree = state()
    first, _ = (store.write(snapshot(number, tree)) for number in (1, 2))
    name = "block-learner.reservoir.x-0003.safetensors"
    os.truncate(first.path / name, 100)
    third = store.write(snapshot(3, tree))
    assert name not in shared(first, third)
    assert len(shared(first, third)) == 4
    store.load(third)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP])
def test_where_the_file_system_has_no_links_blocks_are_written(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.link", no_link)
    tree = state()
    for sequence in (1, 2, 3):
        entry = store.write(snapshot(sequence, tree))
    assert entry.linked_bytes == 0
    assert store.load(entry).fingerprint() == snapshot(3, tree).fingerprint()


def test_a_full_disk_is_no_reason_to_write_instead_of_linking(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tree = state()
    for sequence in (1, 2):
        store.write(snapshot(sequence, tree))
    monkeypatch.setattr("os.link", full)
    with pytest.raises(OSError, match="No space"):
        store.write(snapshot(3, tree))
    assert len(list(store.folder.iterdir())) == 2


def test_a_rewritten_snapshot_and_the_next_ones_hold_nothing_of_the_old_one(store: SnapshotStore) -> None:
    tree = state()
    entries = [store.write(snapshot(number, tree)) for number in (1, 2, 3)]
    before = set(inodes(entries[2]).values())
    x_of(tree)[:100] = 0
    rewritten = store.rewrite(entries[2], snapshot(3, tree))
    assert rewritten.linked_bytes == 0
    assert not before & set(inodes(rewritten).values())
    later = [store.write(snapshot(number, tree)) for number in (4, 5, 6)]
    assert [bool(entry.linked_bytes) for entry in later] == [False, False, True]
    assert shared(rewritten, later[0]) == shared(rewritten, later[1]) == set()


def _swap(folder: Path) -> None:
    save_file({"learner/reservoir/y": torch.zeros(1)}, folder / "block-learner.reservoir.x-0001.safetensors")


def _two_tensors(folder: Path) -> None:
    save_file({"learner/reservoir/x": torch.zeros(1), "z": torch.zeros(1)}, folder / _SECOND)


def _other_rows(folder: Path) -> None:
    save_file({"learner/reservoir/x": torch.zeros(4, 7, dtype=torch.uint8)}, folder / _SECOND)


def _in_both(folder: Path) -> None:
    save_file({"learner/reservoir/x": torch.zeros(4)}, folder / "state.safetensors")


def _link(folder: Path) -> None:
    path = folder / _SECOND
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


_SECOND = "block-learner.reservoir.x-0001.safetensors"


@pytest.mark.parametrize(
    ("craft", "why"),
    [
        (_swap, r"block-learner\.reservoir\.x-0001\.safetensors holds \['learner/reservoir/y'\] instead of rows of"),
        (_two_tensors, r"holds \['learner/reservoir/x', 'z'\] instead of rows of"),
        (_other_rows, r"'learner/reservoir/x': its blocks differ in dtype or in the shape of a row"),
        (_in_both, r"'learner/reservoir/x' stands both in state\.safetensors and in blocks"),
        (_link, r"block-learner\.reservoir\.x-0001\.safetensors is a link"),
        (lambda folder: (folder / _SECOND).unlink(), r"block-learner\.reservoir\.x-0001\.safetensors is missing"),
    ],
)
def test_crafted_blocks_are_refused(store: SnapshotStore, craft: Callable[[Path], object], why: str) -> None:
    entry = store.write(snapshot(1, state()))
    craft(entry.path)

    def sum_again(document: dict[str, list[dict[str, object]]]) -> None:
        for line in (*document["files"], *document["blocks"]):
            path = entry.path / str(line["name"])
            if path.is_file():
                content = path.read_bytes()
                line.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    forge(entry.path, sum_again)
    (forged,) = store.entries()
    with pytest.raises(NotWhole, match=why):
        store.load(forged)
