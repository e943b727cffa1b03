"""Killed with -9 at each step of an adoption and of the commit in it, against a real broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import cast

import pytest

from model_store.offers import OfferStore
from model_store.snapshot_store import SnapshotStore
from pipeline.state import StateTree, fingerprint
from tests.faults.fault_stream import mixed
from tests.faults.harness import MLP, Trial

pytestmark = pytest.mark.kafka

BEFORE = ("adopt.begun", "adopt.loaded", "snapshot.begun", "snapshot.manifest_written")
AFTER = ("commit.written", "transaction.sent", "adopt.committed", "step.done")


def model(store: SnapshotStore) -> str:
    """What was learnt, without what is only kept beside it."""
    snapshot = store.newest_whole().snapshot
    assert snapshot is not None
    return fingerprint(cast(StateTree, snapshot.state["learner"]))


def offer_again(trial: Trial, job: str) -> None:
    """A job that changes nothing: its outcome is known, which is what a learner comes to that nothing befell."""
    parent = trial.store().load(trial.whole_snapshots()[-2])
    OfferStore(trial.state() / "offers").put(job, "consolidation", parent, parent, {})


def test_a_kill_at_every_step_adopts_once(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(network=MLP)
    trial.write(mixed(1_500, seed=3))
    trial.learn(options=["--max-records", 900])
    offer_again(trial, "consolidation-1")
    for point in BEFORE:
        assert trial.kill_at(point), f"no process came to {point}"
    trial.kill_at("adopt.committed")
    for number, point in enumerate(AFTER, start=2):
        trial.learn(options=["--max-records", 150])
        offer_again(trial, f"consolidation-{number}")
        assert trial.kill_at(point), f"no process came to {point}"
    trial.learn_to_the_end()

    trial.undisturbed()
    assert model(trial.store()) == model(trial.store("undisturbed"))
    told = Counter(trial.events())
    assert [name for name, times in told.items() if times > 1] == []
    assert len([name for name in told if name is not None and "/adopted/" in name]) == 1 + len(AFTER)
    log = trial.log
    assert log is not None
    assert Counter(trial.dead_letters()) == Counter(log.bad.items())
