"""Killed with -9 at each named step of the start, the loop and the commit, one process after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.fault_plan import ALL_POINTS, COMMIT_POINTS, START_POINTS, STEP_POINT
from tests.faults.fault_stream import mixed
from tests.faults.harness import MLP, RESNET18, Trial

pytestmark = pytest.mark.kafka


def test_a_kill_at_every_named_step_changes_nothing(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(network=MLP)
    trial.write(mixed(4_000, seed=1))
    for number, point in enumerate(COMMIT_POINTS):
        trial.keep_ahead()
        trial.kill_at(point, nth=1 + number % 2)
        if point.startswith("transaction."):  # the first one of a process is its claim
            trial.kill_at(point, nth=3)
    trial.kill_at(STEP_POINT, nth=9)
    for point in START_POINTS:
        trial.keep_ahead()
        # What was written and not told is told by the next start, so that every step of a start has work to do.
        trial.kill_at("commit.written")
        trial.kill_at(point)
    trial.learn_to_the_end()
    never = [point for point in ALL_POINTS if not trial.met[f"kill at {point}"]]
    assert not never, f"no process came to {never}: nothing is proved of them"
    verdict = trial.verdict()
    assert verdict.passed, verdict.why


def test_nor_does_it_to_a_network_with_batch_norm(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(network=RESNET18)
    trial.write(mixed(900, seed=2))
    for point in ("commit.written", "snapshot.tensors_written", "transaction.sent", "start.told", "step.done"):
        trial.keep_ahead(300)
        trial.kill_at(point)
    trial.learn_to_the_end()
    assert trial.met.total() == 5, trial.met
    verdict = trial.verdict()
    assert verdict.passed, verdict.why
