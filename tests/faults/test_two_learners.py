"""Two learners on one branch: the second one takes over, wherever the first one is, and the first one ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.faults.fault_plan import Fault
from tests.faults.fault_stream import mixed
from tests.faults.harness import Trial
from tests.faults.learner_runs import LearnerRun

pytestmark = pytest.mark.kafka

FENCED = 4
# The longest that a learner which was taken over may go on for (a heartbeat comes every 30 s by default).
NOTICE_SECONDS = 60.0


def assert_fenced(run: LearnerRun, seconds: float = NOTICE_SECONDS) -> None:
    """It ended with code 4, and one line that says why."""
    assert run.wait(seconds) == FENCED, run.text
    failed = [event for event in run.events if event["event"] == "failed"]
    plain = [line for line in run.text.splitlines() if line.startswith("palimpsest: ")]
    assert len(failed) + len(plain) == 1, run.text
    assert "a newer learner has taken over" in (failed[0]["message"] if failed else plain[0])


# Before and after its claim, in a commit before and after its snapshot is whole, and within its transaction.
POINTS = (
    ("start.fenced", 1),
    ("start.sought", 1),
    ("step.done", 10),
    ("snapshot.tensors_written", 2),
    ("snapshot.manifest_written", 2),
    ("commit.written", 2),
    ("transaction.sent", 2),
    ("transaction.offsets_added", 2),
    ("transaction.committed", 2),
)


def test_a_learner_that_comes_back_after_it_was_replaced_ends_and_leaves_nothing_that_counts(
    make_trial: Callable[..., Trial],
) -> None:
    """The first one hangs (SIGSTOP), the second one learns all, the first one goes on: it must end, and whatever it
    wrote after its replacement must not be what a restart goes on from."""
    trial = make_trial(heartbeat_seconds=1.0)
    trial.write(mixed(2_500, seed=41))
    hung = []
    for point, nth in POINTS:
        trial.keep_ahead()
        run = trial.start(Fault(point=point, nth=nth, deed="SIGSTOP"), until_idle_seconds=None)
        run.wait_until_stopped()
        # The next one takes over, and hangs in its turn further on.
        hung.append(run)
    trial.learn_to_the_end()
    learnt = trial.store().newest_whole().entry
    assert learnt is not None
    for run in hung:
        run.send(signal.SIGCONT)
    for run in hung:
        assert_fenced(run)
    newest = trial.store().newest_whole()
    assert newest.entry is not None
    assert newest.entry.number == learnt.number, "a restart prefers what a learner wrote that was replaced"
    # A restart finds nothing left to learn, and says so with the same fingerprint.
    trial.learn_to_the_end()
    verdict = trial.verdict()
    assert verdict.passed, verdict.why


def test_each_of_a_row_of_learners_ends_the_one_before(make_trial: Callable[..., Trial]) -> None:
    """Alive all of them: each start fences the one before within a few heartbeats, whatever that is doing."""
    trial = make_trial(heartbeat_seconds=0.5)
    trial.write(mixed(2_000, seed=42))
    beside = trial.start(branch="beside", until_idle_seconds=None, step_seconds=0.005)
    learners = []
    for number in range(4):
        learners.append(trial.start(until_idle_seconds=None, step_seconds=0.01))
        learners[-1].wait_for_event("started")
        # The one before, which went on until now, may have learnt all there was.
        trial.write(mixed(100, seed=421 + number))
        learners[-1].wait_until(lambda: learners[-1].reached("commit.told"), "a commit")
    learners[-1].send(signal.SIGTERM)
    assert learners[-1].wait() == 0, learners[-1].text
    for run in learners[:-1]:
        assert_fenced(run)
    generations = [{line["snapshot"][0] for line in run.journal if "snapshot" in line} for run in learners]
    assert all(max(one) < min(later) for one, later in pairwise(generations)), generations
    trial.learn_to_the_end()
    verdict = trial.verdict()
    assert verdict.passed, verdict.why
    # Another branch went on beside them and was not disturbed.
    beside.send(signal.SIGTERM)
    assert beside.wait() == 0, beside.text
    trial.learn(branch="beside")
    assert trial.fingerprint("beside") == trial.undisturbed()


@pytest.mark.slow
def test_with_the_usual_heartbeat_it_is_noticed_within_a_minute(make_trial: Callable[..., Trial]) -> None:
    """Idle, so that no commit is due: only the heartbeat can tell."""
    trial = make_trial(heartbeat_seconds=30.0)
    trial.write(mixed(200, seed=43))
    first = trial.start(until_idle_seconds=None)
    first.wait_until(lambda: first.reached("commit.told"), "a commit")
    second = trial.start(until_idle_seconds=None)
    second.wait_for_event("started")
    taken_over_at = time.monotonic()
    assert_fenced(first)
    assert time.monotonic() - taken_over_at < NOTICE_SECONDS
    second.send(signal.SIGTERM)
    assert second.wait() == 0, second.text
