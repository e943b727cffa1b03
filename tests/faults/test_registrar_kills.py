"""The learner and its registrar, each killed with -9 while versions are being made: every version is there once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.mlflow_registry import MlflowRegistry
from model_store.registration_queue import RegistrationQueue
from tests.faults.fault_stream import mixed
from tests.faults.harness import Trial
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

DEADLINE_SECONDS = 120.0


def registrars(queue: Path) -> list[int]:
    """The processes that work on this queue, also those whose learner was killed."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended meanwhile
                continue
            if b"model_store.registrar" in words and str(queue.absolute()).encode() in words:
                found.append(int(entry.name))
    return found


def test_every_version_is_made_once_whoever_is_killed(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(registry=True)
    log = trial.write(mixed(5_000, seed=81))
    queue = trial.state() / "registrations"
    draws = random.Random(82)
    for number in range(4):
        run = trial.start(until_idle_seconds=None, step_seconds=0.05)
        wait_until(lambda: registrars(queue), DEADLINE_SECONDS, otherwise="no registrar")
        # MLflow's first steps take seconds, so that kills come before, within and after them.
        time.sleep(draws.uniform(0.0, 8.0))
        victims = registrars(queue)
        if number % 2 == 0:
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
                trial.met["kill of the registrar"] += 1
        run.kill()
        trial.met["kill of the learner"] += 1
        if number % 2 == 1:  # the registrar goes on for a while without its learner
            wait_until(
                lambda: not registrars(queue), DEADLINE_SECONDS, otherwise="a registrar whose learner was killed stays"
            )
    assert trial.met["kill of the registrar"] >= 2, trial.met
    trial.learn_to_the_end()
    assert RegistrationQueue(queue).pending_numbers() == []
    assert not registrars(queue)
    versions = MlflowRegistry(f"sqlite:///{(trial.folder / 'mlflow.db').absolute()}").versions(trial.stream)
    sums = [str(version.snapshot_sha256) for version in versions]
    assert len(sums) == len(set(sums)), f"two versions of one snapshot: {sorted(sums)}"
    assert len(sums) >= log.records // 400 - 1
    newest = max(versions, key=lambda version: version.version)
    assert sum((newest.offsets or {}).values()) == log.records
    told = [name.rsplit("/", 1)[1] for name in trial.events() if name and "/version_registered/" in name]
    assert sorted(told) == sorted(sums), "each version is told of once"
    verdict = trial.verdict()
    assert verdict.passed, verdict.why
