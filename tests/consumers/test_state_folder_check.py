"""What an operator is told of a state folder, without Kafka."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from consumers.check_report import Fact
from consumers.cluster_check import Log
from consumers.process_settings import SnapshotSettings
from consumers.state_folder_check import check_state_folder
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.record import Partition

SAMPLES = Partition("digits.samples", 0)
LOG = Log(
    cluster_id="cluster",
    topic_id="topic",
    beginnings={SAMPLES: 0},
    ends={SAMPLES: 100},
    retention_seconds=3600.0,
)


def write(state: Path, sequence: int = 1, offset: int = 50, **facts: Any) -> Path:
    """A snapshot of the right stream; its folder."""
    whose: dict[str, Any] = {
        "stream": "digits",
        "branch": "main",
        "cluster_id": "cluster",
        "topic_id": "topic",
        "records_consumed": 50,
    }
    snapshot = Snapshot(
        generation=1,
        sequence=sequence,
        state={"weights": torch.full((1000,), float(sequence))},
        offsets={SAMPLES: offset},
        facts=whose | facts,
    )
    return SnapshotStore(state / "snapshots").write(snapshot).path


def look(state: Path, log: Log | None = LOG) -> dict[str, Fact]:
    facts = check_state_folder(state, stream="digits", branch="main", snapshots=SnapshotSettings(), log=log)
    return {fact.name: fact for fact in facts}


def verdicts(facts: dict[str, Fact]) -> dict[str, str]:
    return {name: fact.verdict for name, fact in facts.items() if fact.verdict != "ok"}


def test_all_is_well(tmp_path: Path) -> None:
    write(tmp_path)
    facts = look(tmp_path)
    assert verdicts(facts) == {}
    assert facts["newest whole snapshot"].value.startswith("000001-0000000001, ")
    assert facts["log after the newest snapshot"].value == "still there"


def test_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    state = tmp_path / "runs" / "digits"
    facts = look(state)
    assert verdicts(facts) == {}
    assert facts[str(state)].value == f"not there yet, {tmp_path} is writable"
    assert facts["snapshots"].value == "none yet"
    assert not state.parent.exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert look(tmp_path / "file" / "state")[str(tmp_path / "file" / "state")].verdict == "problem"


def test_a_snapshot_that_decayed_is_named_and_the_one_before_counts(tmp_path: Path) -> None:
    write(tmp_path, sequence=1)
    newest = write(tmp_path, sequence=2)
    (tensors,) = newest.glob("*.safetensors")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    facts = look(tmp_path)
    assert verdicts(facts) == {"newest whole snapshot": "warning"}
    assert facts["newest whole snapshot"].value.startswith("000001-0000000001, ")

    shutil.rmtree(tmp_path / "snapshots" / "000001-0000000001")
    assert verdicts(look(tmp_path)) == {"snapshots": "problem"}

    (newest / "manifest.json").write_text("{")
    assert verdicts(look(tmp_path)) == {"000001-0000000002": "warning", "snapshots": "problem"}


@pytest.mark.parametrize("facts", [{"stream": "faces"}, {"branch": "trial"}])
def test_a_state_of_somebody_else(tmp_path: Path, facts: dict[str, Any]) -> None:
    write(tmp_path, **facts)
    belongs = look(tmp_path)["belongs to"]
    assert belongs.verdict == "problem"
    assert next(iter(facts.values())) in belongs.way_out


@pytest.mark.parametrize("name", ["cluster", "topic"])
def test_a_state_of_another_log(tmp_path: Path, name: str) -> None:
    facts_of: dict[str, Any] = {f"{name}_id": "elsewhere"}
    write(tmp_path, **facts_of)
    facts = look(tmp_path)
    assert verdicts(facts) == {f"same {name}": "problem"}
    assert "elsewhere" in facts[f"same {name}"].way_out


def test_a_log_that_lost_what_comes_next(tmp_path: Path) -> None:
    write(tmp_path, sequence=1, offset=50)
    write(tmp_path, sequence=2, offset=80)
    oldest, newest = "log after the oldest snapshot", "log after the newest snapshot"
    assert verdicts(look(tmp_path, replace(LOG, beginnings={SAMPLES: 80}))) == {oldest: "warning"}
    assert verdicts(look(tmp_path, replace(LOG, beginnings={SAMPLES: 81}))) == {oldest: "warning", newest: "problem"}
    assert verdicts(look(tmp_path, replace(LOG, ends={SAMPLES: 79}))) == {newest: "problem"}
    assert verdicts(look(tmp_path, None)) == {}, "the brokers said nothing"


def test_a_learner_that_is_down_for_long(tmp_path: Path) -> None:
    write(tmp_path, offset=50)
    name = "retention after the newest snapshot"
    assert verdicts(look(tmp_path, replace(LOG, retention_seconds=1e-6))) == {name: "warning"}
    everything_learnt = replace(LOG, retention_seconds=1e-6, ends={SAMPLES: 50})
    assert verdicts(look(tmp_path, everything_learnt)) == {}, "a lull makes no snapshots"
    assert name not in look(tmp_path, replace(LOG, retention_seconds=None))


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    (entry,) = SnapshotStore(tmp_path / "snapshots").entries()
    usage = namedtuple("usage", "total used free")
    # Of the three newest and the three old teachers one is there: five more and the one being written are to come.
    for free, verdict in ((6 * entry.bytes - 1, "problem"), (6 * entry.bytes, "warning"), (12 * entry.bytes, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: usage(0, 0, free))
        assert look(tmp_path)["free disk"].verdict == verdict
