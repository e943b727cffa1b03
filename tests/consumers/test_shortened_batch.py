"""A process whose batch becomes shorter without its culprits: each record is learnt once, and told of once."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.consumers.digit_records import Written
from tests.consumers.learner_world import Killed, KilledAfterSteps, Witness, World, learner_settings

RECORDS = 45


def stream() -> list[Written]:
    """All others are of another shape than the first record, which no update can bear."""
    written = []
    for number in range(RECORDS):
        x = np.full(3, 3e38) if number == 0 else np.random.default_rng(number).normal(number % 3, 0.3, 8)
        headers = {
            "ce_id": f"vector-{number}".encode(),
            "ce_label": str(number % 3).encode(),
            "content-type": b"application/json",
        }
        value = json.dumps({"payload": [float(np.float32(each)) for each in x]}).encode()
        written.append(Written(value=value, headers=tuple(headers.items())))
    return written


def world(folder: Path) -> World:
    made = World(folder, learner_settings(hold_out={"share": 0.0}, batch_size=10, max_records_per_batch=640))
    made.write(stream())
    return made


def test_an_idle_stream_is_learnt_whole(tmp_path: Path) -> None:
    idle, witness = world(tmp_path), Witness()
    idle.learn(observer=witness)
    ends = [0, *(report.batch.next_offsets[idle.partition] for report in witness.steps)]
    assert [end - begin for begin, end in pairwise(ends)] == [11, 10, 10, 10, 4]
    assert [len(report.batch.trainable) for report in witness.steps] == [10, 10, 10, 10, 4]
    newest = idle.newest()
    assert newest.offsets[idle.partition] == newest.state["records_consumed"] == RECORDS
    assert newest.state["records_trained"] == RECORDS - 1
    assert idle.dead_offsets() == [0]
    assert [json.loads(event.value or b"")["offsets"] for event in idle.events("idle_flush")] == [
        [[idle.log.topic, 0, RECORDS]]
    ]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_kill_between_the_batches_changes_nothing(tmp_path: Path, steps: int) -> None:
    undisturbed, killed = world(tmp_path / "undisturbed"), world(tmp_path / "killed")
    undisturbed.learn()
    with pytest.raises(Killed):
        killed.learn(observer=KilledAfterSteps(steps), snapshots={"every_records": 1})
    killed.learn(snapshots={"every_records": 1})
    assert killed.newest().fingerprint() == undisturbed.newest().fingerprint()
    assert killed.dead_offsets() == [0]
