"""Killed with -9 at moments drawn by a seed, again and again: the same model, nothing lost, nothing twice."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.faults.fault_stream import mixed
from tests.faults.harness import MLP, RESNET18, Trial

pytestmark = pytest.mark.kafka


def kill(trial: Trial, kills: int, *, seed: int, step_seconds: float = 0.0) -> None:
    """So many kills that were really met; a process that was quicker than its kill does not count."""
    draws = random.Random(seed)
    for _ in range(3 * kills):
        trial.kill_somewhere(draws, step_seconds=step_seconds)
        if trial.met.total() == kills:
            break
    assert trial.met.total() == kills, f"the log ended before that: {trial.met}"
    trial.learn_to_the_end()


def test_many_kills_at_random_moments(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(network=MLP)
    trial.write(mixed(5_000, seed=11))
    kill(trial, 14, seed=12, step_seconds=0.005)
    verdict = trial.verdict()
    assert verdict.passed, verdict.why


def test_many_kills_of_a_network_with_batch_norm(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(network=RESNET18)
    trial.write(mixed(1_200, seed=21))
    kill(trial, 6, seed=22)
    verdict = trial.verdict()
    assert verdict.passed, verdict.why


def test_every_record_once_on_eight_partitions(make_trial: Callable[..., Trial]) -> None:
    """The order between partitions is the brokers' to choose, so the model may differ; what it is made of may not."""
    trial = make_trial(network=MLP, partitions=8)
    trial.write(mixed(4_000, seed=31))
    kill(trial, 8, seed=32, step_seconds=0.005)
    verdict = trial.verdict(same_fingerprint=False)
    assert verdict.passed, verdict.why
