"""A part of a state is what the whole says, and damage anywhere in what was summed is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_store.manifest import STATE_FILE, TENSORS_FILE, NotWhole
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.record import Partition
from pipeline.state import StateTree, fingerprint

WANTED = ("forgetting", "learner/reservoir/y")


def state() -> StateTree:
    """The reservoir's labels are large enough to lie in blocks; the weights lie before and behind what is wanted."""
    generator = torch.Generator().manual_seed(0)
    history: StateTree = {"accuracies": torch.rand(7, 2, generator=generator), "nothing": torch.empty(0, 2)}
    forgetting: StateTree = {
        "labels": ["a", "b"],
        "best": torch.tensor([0.5, 1.0], dtype=torch.float64),
        "history": history,
    }
    reservoir: StateTree = {"y": torch.arange(50_000), "seen": 50_000}
    learner: StateTree = {"weights": torch.rand(700_000, generator=generator), "reservoir": reservoir}
    return {"forgetting": forgetting, "forgetting_too": torch.ones(3), "learner": learner}  # a name that begins alike


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots")


def written(store: SnapshotStore) -> SnapshotEntry:
    return store.write(Snapshot(generation=1, sequence=1, state=state(), offsets={Partition("t", 0): 3}))


def test_it_is_what_the_whole_says_and_no_more(store: SnapshotStore) -> None:
    entry = written(store)
    assert any("reservoir.y" in block.name for block in entry.manifest.blocks)
    part = store.load_part(entry, WANTED)
    whole = store.load(entry).state
    learner = whole["learner"]
    assert isinstance(learner, dict)
    reservoir = learner["reservoir"]
    assert isinstance(reservoir, dict)
    assert fingerprint(part) == fingerprint(
        {"forgetting": whole["forgetting"], "learner": {"reservoir": {"y": reservoir["y"]}}}
    )


def test_what_is_not_there_is_not_in_it(store: SnapshotStore) -> None:
    assert store.load_part(written(store), ["prequential"]) == {}


def test_a_flipped_bit_is_found_also_in_what_is_not_wanted(store: SnapshotStore) -> None:
    entry = written(store)
    file = entry.path / TENSORS_FILE
    good = file.read_bytes()
    for place in (0, 9, 40, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(NotWhole):
            store.load_part(entry, WANTED)
    file.write_bytes(good)
    store.load_part(entry, WANTED)


def test_a_block_and_the_rest_are_verified_too(store: SnapshotStore) -> None:
    entry = written(store)
    wanted = next(block.name for block in entry.manifest.blocks if "reservoir.y" in block.name)
    for name in (wanted, STATE_FILE):
        file = entry.path / name
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(NotWhole, match=name):
            store.load_part(entry, WANTED)
        file.write_bytes(good)


@pytest.mark.parametrize("size", [0, 4, 20, 1000])
def test_a_file_that_ends_too_early(store: SnapshotStore, size: int) -> None:
    entry = written(store)
    file = entry.path / TENSORS_FILE
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(NotWhole, match="bytes instead of"):
        store.load_part(entry, WANTED)


def test_a_snapshot_that_was_pruned_meanwhile(store: SnapshotStore) -> None:
    entry = written(store)
    store.remove(entry.path)
    with pytest.raises(NotWhole):
        store.load_part(entry, WANTED)
