"""A disk that takes no more, and one that gives back something else: learning goes on, and nothing is made up."""

from __future__ import annotations

import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.disk_damage import DAMAGES, spoil
from tests.faults.fault_plan import Fault
from tests.faults.fault_stream import mixed
from tests.faults.harness import WIDE_MLP, Trial
from tests.faults.learner_runs import LearnerRun

pytestmark = pytest.mark.kafka

DISK_REFUSED = 7
# Far below a snapshot of WIDE_MLP, far above journal and output of one process.
FILE_BYTES = 300_000


def failures(run: LearnerRun) -> float:
    """What the learner's own page says of snapshots that could not be written."""
    url = run.wait_for_event("metrics")["url"]
    with urllib.request.urlopen(url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith("palimpsest_snapshot_failures_total")).split()[-1])


def test_a_full_disk_stops_no_learning_and_the_last_whole_snapshot_is_used(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(network=WIDE_MLP, metrics=True, every_records=100)
    log = trial.write(mixed(1_500, seed=61))
    full = trial.start(
        Fault(point="commit.begun", nth=3, deed="limit_files"), file_bytes=FILE_BYTES, until_idle_seconds=None
    )
    # It learns to the log's end all the same.
    full.wait_until(lambda: full.records_consumed() > log.records - 50, "at the end of the log")
    full.wait_for_event("snapshot_failed")
    assert failures(full) >= 1
    newest = trial.store().newest_whole()
    assert newest.entry is not None
    assert not newest.passed_over, "half a snapshot was left behind"
    kept = newest.entry.number
    full.send(signal.SIGTERM)
    assert full.wait() == DISK_REFUSED, full.text
    assert full.events[-1]["exit_code"] == DISK_REFUSED
    newest = trial.store().newest_whole()
    assert newest.entry is not None
    assert newest.entry.number == kept
    # The disk is well again.
    trial.learn_to_the_end()
    verdict = trial.verdict()
    assert verdict.passed, verdict.why


def test_a_disk_that_is_full_for_a_while_only_costs_a_retry(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(network=WIDE_MLP, every_records=100)
    trial.write(mixed(1_500, seed=62))
    run = trial.learn(
        Fault(point="commit.begun", nth=2, deed="limit_files"),
        Fault(point="commit.begun", nth=3, deed="lift_limit"),
        file_bytes=FILE_BYTES,
    )
    assert [event["event"] for event in run.events].count("snapshot_failed") == 1
    verdict = trial.verdict()
    assert verdict.passed, verdict.why


def test_a_folder_that_cannot_be_written_ends_with_code_7_and_costs_nothing(make_trial: Callable[..., Trial]) -> None:
    """Permissions do not bind a superuser, so the folder is away and a file stands in its place."""
    trial = make_trial(every_records=100)
    trial.write(mixed(1_500, seed=63))
    run = trial.start(Fault(point="commit.begun", nth=3, deed="SIGSTOP"), until_idle_seconds=None)
    run.wait_until_stopped()
    snapshots = trial.store().folder
    away = snapshots.rename(snapshots.with_name("away"))
    snapshots.write_text("not a folder")
    run.send(signal.SIGCONT)
    run.wait_for_event("snapshot_failed")
    run.send(signal.SIGTERM)
    assert run.wait() == DISK_REFUSED, run.text
    snapshots.unlink()
    away.rename(snapshots)
    trial.learn_to_the_end()
    verdict = trial.verdict()
    assert verdict.passed, verdict.why


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder is mounted read-only over itself, as a volume whose disk has failed is. Skips where nobody may."""
    mount = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, text=True)
    if mount.returncode != 0:
        pytest.skip(f"NO MOUNTS here ({mount.stderr.strip()}): a read-only volume is not tried")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_read_only_volume_costs_retries_and_nothing_else(make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(every_records=100)
    trial.write(mixed(3_000, seed=65))
    run = trial.start(Fault(point="commit.begun", nth=3, deed="SIGSTOP"), until_idle_seconds=None)
    run.wait_until_stopped()
    with read_only(trial.state()):
        kept = trial.store().newest_whole().entry
        run.send(signal.SIGCONT)
        run.wait_for_event("snapshot_failed")
        newest = trial.store().newest_whole()
        assert newest.entry == kept
        assert not newest.passed_over
        # Who starts there now hears of it in one line, and touches nothing.
        refused = trial.start(until_idle_seconds=None)
        assert refused.wait() == 2, refused.text
        assert "Read-only file system; give another --state" in refused.text
        assert len(refused.text.splitlines()) == 1, refused.text
    run.wait_until(lambda: [event["event"] for event in run.events].count("snapshot") > 2, "a snapshot again")
    run.send(signal.SIGTERM)
    assert run.wait() == 0, run.text
    trial.learn_to_the_end()
    verdict = trial.verdict()
    assert verdict.passed, verdict.why


def test_a_snapshot_with_a_wrong_bit_or_a_missing_file_is_passed_over(make_trial: Callable[..., Trial]) -> None:
    """Each time the newest one is spoilt in another way; the one before is used, and nothing is told twice."""
    trial = make_trial(every_records=60)
    trial.write(mixed(3_000, seed=64))
    for number, damage in enumerate(DAMAGES):
        trial.keep_ahead()
        assert trial.kill_at("commit.pruned", nth=3)
        entries = trial.store().entries()
        spoil(entries[-1].path, damage, number)
        trial.met[damage] += 1
        found = trial.store().newest_whole()
        assert found.entry is not None
        assert (found.entry.number, len(found.passed_over)) == (entries[-2].number, 1), damage
    # All at once: everything of the newest snapshot.
    trial.keep_ahead()
    assert trial.kill_at("commit.told", nth=3)
    shutil.rmtree(trial.store().entries()[-1].path)
    trial.learn_to_the_end()
    verdict = trial.verdict()
    assert verdict.passed, verdict.why
