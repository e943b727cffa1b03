from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from consumers.base_snapshots import base_numbers, base_of
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.state import Json


def entries(folder: Path, classes: Sequence[int]) -> list[SnapshotEntry]:
    store = SnapshotStore(folder)
    for sequence, known in enumerate(classes, start=1):
        facts: dict[str, Json] = {"classes": [str(number) for number in range(known)]}
        store.write(Snapshot(generation=1, sequence=sequence, state={}, offsets={}, facts=facts))
    return store.entries()


def test_the_last_ones_before_new_classes_are_kept(tmp_path: Path) -> None:
    kept = entries(tmp_path, [0, 0, 2, 2, 2, 3, 3, 5])
    # after 5 the third class comes, after 7 two more; before 3 nothing was known
    assert base_numbers(kept, keep=3) == {(1, 5), (1, 7)}
    assert base_numbers(kept, keep=1) == {(1, 7)}
    assert base_numbers(kept, keep=0) == set()
    assert base_numbers([], keep=3) == set()


def test_the_base_is_the_last_that_knows_fewer(tmp_path: Path) -> None:
    kept = entries(tmp_path, [0, 2, 2, 3, 3])
    base = base_of(kept, kept[-1])
    assert base is not None
    assert base.sequence == 3
    assert base_of(kept, kept[1]) is None
    assert base_of(kept[3:], kept[-1]) is None
