"""What becomes of a process whose stream holds records that no update can bear, or whose weights diverge."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from consumers import dead_letters
from deploy.exit_codes import DIVERGED, exit_code
from pipeline.poison import WeightsDiverged
from tests.consumers.digit_records import Written
from tests.consumers.learner_world import Killed, KilledAfterSteps, Witness, World, learner_settings, run

GOOD, POISON = 1.0, 3e38


def vector(number: int, scale: float, label: str | None = None) -> Written:
    """Eight numbers around a class's own place; `scale` 3e38 makes them finite numbers with an infinite loss."""
    classes = number % 3
    x = np.random.default_rng(number).normal(classes, 0.3, 8)
    payload = [float(value) for value in (np.sign(x) * scale if scale == POISON else x)]
    headers = {
        "ce_id": f"vector-{number}".encode(),
        "ce_label": (label or str(classes)).encode(),
        "content-type": b"application/json",
    }
    return Written(value=json.dumps({"payload": payload}).encode(), headers=tuple(headers.items()))


def stream(poisoned: Iterable[int], records: int = 300) -> list[Written]:
    bad = set(poisoned)
    return [vector(number, POISON if number in bad else GOOD) for number in range(records)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, learner_settings(hold_out={"share": 0.0}))


def test_only_the_culprits_go_to_dead_letters_also_under_kills(world: World) -> None:
    culprits = [13, 57, 58, 59, 200, 299]
    world.write(stream(culprits))
    for steps in (2, 5, 4):
        with pytest.raises(Killed):
            world.learn(observer=KilledAfterSteps(steps))
    witness = Witness()
    world.learn(observer=witness)
    assert world.dead_offsets() == culprits
    reasons = {dict(message.headers)[dead_letters.REASON] for message in world.dead_letters()}
    assert reasons == {b"not_learnable"}
    state = world.newest().state
    assert state["records_consumed"] == 300
    assert state["records_trained"] == 300 - len(culprits)


def test_diverged_weights_leave_the_last_snapshot_and_drain_nothing_into_dead_letters(world: World) -> None:
    world.write(stream([*range(100, 130)]))
    with pytest.raises(WeightsDiverged) as diverged:
        world.learn(snapshots={"every_records": 20})
    assert exit_code(diverged.value) == DIVERGED
    assert "\n" not in str(diverged.value)
    newest = world.newest()
    assert newest.offsets[world.partition] <= 110
    assert len(world.dead_letters()) <= 5
    # The same settings on the same records lead there again, and again nothing is drained.
    with pytest.raises(WeightsDiverged):
        world.learn(snapshots={"every_records": 20})
    assert len(world.dead_letters()) <= 5
    assert world.newest().offsets == newest.offsets


def accuracy(world: World, records: list[Written]) -> float:
    world.write(records)
    process = world.process()
    process.start()
    run(process)
    assert process.learner.records_consumed == len(records)
    assert process.learner.prequential.accuracy is not None
    return process.learner.prequential.accuracy


@pytest.fixture(scope="module")
def usual_accuracy(tmp_path_factory: pytest.TempPathFactory) -> float:
    return accuracy(World(tmp_path_factory.mktemp("usual"), learner_settings(hold_out={"share": 0.0})), stream([], 400))


@pytest.mark.parametrize("magnitude", [1e3, 1e5, 1e8, 1e12, 1e18, 1e25, 3e38])
def test_one_record_of_huge_numbers_ends_nothing(world: World, usual_accuracy: float, magnitude: float) -> None:
    """What is small enough for a finite update moves the weights by a clipped step, and the next updates mend it."""
    records = stream([], records=400)
    huge = json.dumps({"payload": [magnitude, -magnitude] * 4}).encode()
    records[150] = Written(value=huge, headers=records[150].headers)
    assert accuracy(world, records) > usual_accuracy - 0.1
    assert len(world.dead_letters()) <= 1
