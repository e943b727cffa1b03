"""A learner that asks and a worker that answers, both killed with -9 wherever it hurts, against a real broker."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable
from typing import cast

import pytest

from consumers.requested_jobs import requested_job
from model_store.offers import Offer, OfferStore
from pipeline.restructuring.trigger import Kind
from pipeline.state import fingerprint
from tests.faults.fault_plan import Fault
from tests.faults.fault_stream import mixed
from tests.faults.harness import MLP, Trial

pytestmark = pytest.mark.kafka

# One request in the first 900 records, and a second one after these.
ASKS = "{new_classes: 2, settle_records: 100, rest_records: 200, expand_below: null}"
# Each request is one for an expansion, until there are too many sub-modules.
ASKS_TO_GROW = ASKS.replace("null", "1.0")
BEFORE_THE_OFFER = (("job.saved", 1), ("job.saved", 2), ("snapshot.state_written", 2), ("job.made", 1))
AFTER_IT = ("offer.put", "job.answered")
# Before the adoption is durable, where the next process makes it once more, and after that, where it goes on with it.
LEARNER_POINTS = ("adopt.begun", "adopt.loaded", "snapshot.manifest_written", "commit.written", "step.done")


@pytest.fixture
def trial(make_trial: Callable[..., Trial]) -> Trial:
    return begun(make_trial, Kind.CONSOLIDATION)


def begun(make_trial: Callable[..., Trial], kind: Kind) -> Trial:
    """Where the learner asks for jobs of this kind."""
    trial = make_trial(network=MLP, restructuring=ASKS if kind is Kind.CONSOLIDATION else ASKS_TO_GROW)
    trial.write(mixed(900, seed=5))
    trial.write_unlabelled(400)
    return trial


def offers(trial: Trial) -> OfferStore:
    return OfferStore(trial.state() / "offers")


def offered(trial: Trial) -> Offer:
    (offer,) = offers(trial).waiting()
    return offer


def all_is_well(trial: Trial, *, adoptions: int) -> None:
    """Nothing is lost, nothing is told twice, and each request has its answer."""
    log = trial.log
    assert log is not None
    told = Counter(name.removeprefix(f"{trial.stream}/main/") for name in trial.events() if name is not None)
    assert [name for name, times in told.items() if times > 1] == []
    kinds = Counter(name.partition("/")[0] for name in told)
    assert kinds["adopted"] == adoptions
    assert kinds["restructuring_requested"] == adoptions + kinds["restructuring_refused"] + kinds["offer_refused"] + (
        requested_job(trial.store().entries()) is not None
    )
    assert kinds["new_class"] == 10
    assert Counter(trial.dead_letters()) == Counter(log.bad.items())
    newest = trial.store().newest_whole().snapshot
    assert newest is not None
    assert cast(int, newest.state["records_consumed"]) == log.records
    assert list(newest.offsets.values()) == log.ends
    assert offers(trial).answers() == [] or requested_job(trial.store().entries()) is None


@pytest.mark.parametrize("kind", Kind)
def test_a_worker_killed_at_every_step_offers_the_same_once(make_trial: Callable[..., Trial], kind: Kind) -> None:
    trial = begun(make_trial, kind)
    trial.learn()
    trial.work()
    undisturbed = offered(trial)
    assert undisturbed.job.startswith(f"{kind}-")
    wanted = fingerprint(offers(trial).load(undisturbed).state)
    offers(trial).remove(undisturbed.job)
    for point, nth in BEFORE_THE_OFFER:
        trial.work(Fault(point=point, nth=nth), code=-signal.SIGKILL)
        assert offers(trial).answers() == []
    for number, point in enumerate(AFTER_IT):
        trial.work(Fault(point=point), code=-signal.SIGKILL)
        trial.work()
        again = offered(trial)
        assert again.job == undisturbed.job
        assert fingerprint(offers(trial).load(again).state) == wanted, f"killed at {point}"
        if number == 0:
            offers(trial).remove(again.job)
    trial.write(mixed(300, seed=6))
    trial.learn()
    trial.learn()
    all_is_well(trial, adoptions=1)


@pytest.mark.parametrize("kind", Kind)
def test_a_learner_killed_at_every_step_of_it_adopts_each_once(make_trial: Callable[..., Trial], kind: Kind) -> None:
    """The offer waits when each process starts, so that it is what each one comes to first."""
    trial = begun(make_trial, kind)
    trial.learn(options=["--max-records", 700])
    trial.work()
    job = offered(trial).job
    assert job.startswith(f"{kind}-")
    for point in LEARNER_POINTS:
        assert trial.kill_at(point), f"no process came to {point}"
    trial.learn()
    trial.work()
    trial.write(mixed(60, seed=8))
    trial.learn()
    trial.learn()
    told = [name for name in trial.events() if name is not None and "/adopted/" in name]
    assert f"{trial.stream}/main/adopted/{job}" in told
    all_is_well(trial, adoptions=len(told))


def test_a_refusal_survives_kills_of_both(make_trial: Callable[..., Trial]) -> None:
    """Too few unlabelled records: the learner hears why, once."""
    trial = make_trial(network=MLP, restructuring=ASKS)
    trial.write(mixed(900, seed=5))
    trial.write_unlabelled(20)
    trial.learn()
    trial.work(Fault(point="offer.refused"), code=-signal.SIGKILL)
    trial.work()
    (refusal,) = offers(trial).answers()
    assert "unlabelled rows are too few" in refusal.facts["why"]
    for point in ("adopt.begun", "commit.begun", "snapshot.manifest_written", "commit.written"):
        assert trial.kill_at(point), f"no process came to {point}"
    trial.learn()
    trial.write(mixed(100, seed=6))
    trial.learn()
    trial.learn()
    assert len([name for name in trial.events() if name is not None and "/restructuring_refused/" in name]) == 1
    all_is_well(trial, adoptions=0)


def test_both_at_once_and_killed_at_random(trial: Trial) -> None:
    draws = random.Random(11)
    for _ in range(6):
        worker = trial.start_worker(until_idle_seconds=60.0)
        learner = trial.start(step_seconds=0.01, until_idle_seconds=60.0)
        first, second = (worker, learner) if draws.random() < 0.5 else (learner, worker)
        assert not first.ends_within(draws.uniform(0.3, 2.5)), first.text
        first.kill()
        second.ends_within(draws.uniform(0.0, 0.5))
        second.kill()
    trial.learn()
    trial.work()
    trial.write(mixed(60, seed=7))
    trial.learn()
    trial.learn()
    told = [name for name in trial.events() if name is not None and "/adopted/" in name]
    assert told, "the job was done"
    all_is_well(trial, adoptions=len(told))
