"""SIGTERM, as a service manager sends it before it kills: the batch under way is finished, a snapshot made, exit 0."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.faults.fault_plan import ALL_POINTS, START_POINTS, Fault
from tests.faults.fault_stream import mixed
from tests.faults.harness import Trial

pytestmark = pytest.mark.kafka

GRACE_SECONDS = 30.0  # Kubernetes' own


def test_at_any_moment_it_ends_well_and_the_next_run_goes_on(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial()
    log = trial.write(mixed(5_000, seed=51))
    draws = random.Random(52)
    learnt = 0
    for _ in range(10):
        trial.keep_ahead(2_500)
        run = trial.start(until_idle_seconds=None, step_seconds=0.005)
        # Before the command has taken the signal over, it ends the process at once, and with another code.
        run.wait_for_event("started")
        assert not run.ends_within(draws.uniform(0.0, 0.6)), run.text
        sent_at = time.monotonic()
        run.send(signal.SIGTERM)
        assert run.wait(GRACE_SECONDS) == 0, run.text
        assert time.monotonic() - sent_at < GRACE_SECONDS
        trial.met["SIGTERM"] += 1
        assert run.events[-1]["event"] == "stopped", run.text
        assert run.events[-1]["stopped_by"] == "signal"
        entry = trial.store().newest_whole().entry
        assert entry is not None
        assert entry.facts["records_consumed"] == max(run.records_consumed(), learnt), "a batch was learnt and lost"
        learnt = max(run.records_consumed(), learnt)
    assert 0 < learnt < log.records
    trial.learn_to_the_end()
    verdict = trial.verdict()
    assert verdict.passed, verdict.why


def test_also_within_a_start_and_within_a_commit(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial()
    trial.write(mixed(3_000, seed=53))
    for point in ALL_POINTS:
        trial.keep_ahead()
        # What was written and not told is told by the next start.
        if point in START_POINTS:
            assert trial.kill_at("commit.written")
        run = trial.learn(Fault(point=point, deed="SIGTERM"), until_idle_seconds=None)
        assert run.reached(point), f"it did not come to {point}"
        trial.met[f"SIGTERM at {point}"] += 1
        assert run.events[-1]["event"] == "stopped", run.text
    trial.learn_to_the_end()
    verdict = trial.verdict()
    assert verdict.passed, verdict.why
