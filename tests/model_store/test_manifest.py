"""Snapshots of format version 1, which had no blocks, are still read, and are what they were."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model_store.manifest import MANIFEST_FILE, NotWhole, canonical_json, parse_manifest
from model_store.snapshot import OutboxMessage, Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.record import Partition
from pipeline.state import StateTree

TENSORS = {"learner/reservoir/x": torch.arange(300_000, dtype=torch.uint8).reshape(-1, 100), "w": torch.ones(3)}
FACTS = {"learner/reservoir/seen": 3000, "classes": ["köln"]}
OUTBOX = b'{"headers":[["h","gA=="]],"key":null,"topic":"s.events","value":"AAE="}\n'
OFFSETS = [{"topic": "s.samples", "partition": 1, "offset": 40}, {"topic": "s.samples", "partition": 0, "offset": 12}]


def sealed(document: dict[str, Any]) -> bytes:
    seal = hashlib.sha256(canonical_json(document)).hexdigest()
    return canonical_json({**document, "seal": seal}, indent=1) + b"\n"


def version_1(folder: Path, **changes: Any) -> dict[str, Any]:
    """A snapshot as the release before wrote it; returns its manifest."""
    folder.mkdir(parents=True)
    save_file(TENSORS, folder / "state.safetensors")
    (folder / "state.json").write_bytes(canonical_json(FACTS))
    (folder / "outbox.jsonl").write_bytes(OUTBOX)
    document: dict[str, Any] = {
        "format_version": 1,
        "generation": 3,
        "sequence": 17,
        "offsets": OFFSETS,
        "facts": {"stream": "s"},
        "files": [
            {
                "name": name,
                "bytes": (folder / name).stat().st_size,
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            }
            for name in ("state.safetensors", "state.json", "outbox.jsonl")
        ],
        "written_at": "2026-01-02T03:04:05.678+00:00",
        **changes,
    }
    (folder / MANIFEST_FILE).write_bytes(sealed(document))
    return document


def test_version_1_loads(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    document = version_1(tmp_path / "000003-0000000017")
    found = store.newest_whole()
    assert found.passed_over == ()
    assert found.entry is not None
    assert found.snapshot is not None
    assert (found.entry.number, found.entry.facts, found.entry.manifest.blocks) == ((3, 17), {"stream": "s"}, [])
    reservoir: StateTree = {"seen": 3000, "x": TENSORS["learner/reservoir/x"]}
    learner: StateTree = {"reservoir": reservoir}
    expected = Snapshot(
        generation=3,
        sequence=17,
        state={"learner": learner, "w": TENSORS["w"], "classes": ["köln"]},
        offsets={Partition("s.samples", 0): 12, Partition("s.samples", 1): 40},
    )
    assert found.snapshot.fingerprint() == expected.fingerprint()
    assert found.snapshot.outbox == (OutboxMessage("s.events", None, b"\x00\x01", (("h", b"\x80"),)),)
    # The sum by which its version was registered.
    sums = [file["sha256"] for file in document["files"][:2]]
    identity = canonical_json([*sums, [["s.samples", 0, 12], ["s.samples", 1, 40]]])
    assert found.entry.sha256 == hashlib.sha256(identity).hexdigest()
    # The next ones are of this release's format; they take its rows as blocks, and link from it two later.
    later = [
        store.write(Snapshot(generation=3, sequence=number, state=found.snapshot.state, offsets={}))
        for number in (18, 19, 20)
    ]
    assert [entry.manifest.format_version for entry in store.entries()] == [1, 2, 2, 2]
    assert [bool(entry.linked_bytes) for entry in later] == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"blocks": []}, "blocks belong to format version 2"),
        ({"format_version": 2}, "blocks belong to format version 2"),
        ({"written_at": "2026-01-02T03:04:05.678"}, "written_at has no time zone"),
        ({"written_at": "soon"}, "written_at: Value error, Invalid isoformat string: 'soon'"),
    ],
)
def test_a_version_1_that_is_none(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    document = version_1(tmp_path / "000003-0000000017", **changes)
    with pytest.raises(NotWhole, match=why) as refused:
        parse_manifest(sealed(document))
    assert "\n" not in refused.value.why


def test_encoded_and_parsed_again(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    hold_out: StateTree = {"x": torch.zeros(2**19)}
    written = store.write(Snapshot(generation=1, sequence=1, state={"hold_out": hold_out}, offsets={}))
    content = (written.path / MANIFEST_FILE).read_bytes()
    assert parse_manifest(content) == written.manifest
    assert written.manifest.encode() == content
    assert len(json.loads(content)["blocks"]) == 2
