"""A log that has lost what comes next stops the learner, unless somebody has said that it may go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consumers.log_gap import Gap, LogGap
from consumers.memory_record_source import InMemoryLog
from model_store.snapshot_store import SnapshotStore
from pipeline.record import Partition
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import NEVER_SECONDS, Killed, KilledBeforeTelling, Witness, World, run

RECORDS = digit_stream(90)


class GapWitness(Witness):
    def __init__(self) -> None:
        super().__init__()
        self.gaps: list[Gap] = []

    def gap_accepted(self, gap: Gap) -> None:
        self.gaps.append(gap)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A learner has learnt some records, and retention has deleted some that it has not."""
    world = World(tmp_path)
    world.write(RECORDS)
    world.learn(max_records=60)
    return world


def consumed(world: World) -> int:
    return world.newest().offsets[world.partition]


def test_it_goes_on_after_the_gap_and_says_so_for_good(world: World) -> None:
    before = consumed(world)
    world.log.truncate_before(0, before + 7)
    with pytest.raises(LogGap):
        world.process().start()
    witness = GapWitness()
    process = world.process(accept_gap=True, observer=witness)
    process.start()
    expected = [world.partition.topic, 0, before, before + 7]
    assert [gap.as_json for gap in witness.gaps] == [expected]
    (event,) = world.events("accepted_gap")
    assert json.loads(event.value or b"")["gaps"] == [expected]
    # It is durable before anything is learnt, so no later start asks again.
    assert world.newest().offsets == {world.partition: before + 7}
    decision = {"kind": "accepted_gap", "gaps": [expected], "records_consumed": before}
    assert world.newest().state["decisions"] == [decision]
    again = world.process()
    again.start()
    report = run(again)
    assert report.records == len(RECORDS) - before - 7
    assert len(world.events("accepted_gap")) == 1


def test_leave_given_for_nothing_changes_nothing(world: World) -> None:
    snapshots = len(world.store.entries())
    world.process(accept_gap=True).start()
    assert world.events("accepted_gap") == []
    assert len(world.store.entries()) == snapshots


def test_a_lost_tail_is_gone_on_from_its_end(world: World) -> None:
    before = consumed(world)
    world.log.lose_tail(0, before - 5)
    world.learn(accept_gap=True)
    rest = RECORDS[before - 5 : before + 20]
    world.write(rest)  # other records than those learnt stand there now; the repeats among them are known by their ids
    report = world.learn()
    assert report.records == len(rest)
    assert world.newest().offsets == {world.partition: before + 20}


def test_a_topic_made_anew_is_learnt_from_its_beginning(world: World) -> None:
    world.topic_id = "another"
    world.log = InMemoryLog(world.log.topic)
    world.write(RECORDS[:80])
    with pytest.raises(LogGap, match="was made anew"):
        world.process().start()
    witness = Witness()
    assert world.learn(accept_gap=True, observer=witness).records == 80
    repeats = sum(len(step.batch.duplicates) for step in witness.steps)
    assert repeats > 40, "what was learnt before is known by its id"
    assert world.learn().records == 0, "the state belongs to the new topic now"


def test_an_acceptance_whose_snapshot_is_lost_is_obeyed(world: World) -> None:
    before = consumed(world)
    world.log.truncate_before(0, before + 7)
    world.process(accept_gap=True).start()
    newest = world.newest_entry()
    (newest.path / "state.json").unlink()
    process = world.process()  # nobody repeats the leave
    process.start()
    assert len(world.events("accepted_gap")) == 1
    run(process)
    assert consumed(world) == len(RECORDS)


def test_another_gap_than_the_accepted_one_is_asked_about_again(world: World) -> None:
    before = consumed(world)
    world.log.truncate_before(0, before + 7)
    world.process(accept_gap=True).start()
    world.log.truncate_before(0, before + 9)
    with pytest.raises(LogGap, match=f"begins at offset {before + 9}, but this state needs it from {before + 7}"):
        world.process().start()


def test_a_kill_while_it_is_accepted_loses_nothing(world: World) -> None:
    before = consumed(world)
    world.log.truncate_before(0, before + 7)
    with pytest.raises(Killed):
        world.process(accept_gap=True, commit_log=KilledBeforeTelling(world.commit_log(), commits=1)).start()
    run_on = world.process()
    run_on.start()
    run(run_on)
    assert len(world.events("accepted_gap")) == 1
    assert consumed(world) == len(RECORDS)


def test_several_partitions_are_borne_each_for_itself(tmp_path: Path) -> None:
    world = World(tmp_path, log=InMemoryLog("digits.samples", partitions=2))
    for number, record in enumerate(RECORDS[:120]):
        world.log.append(record.value, key=record.key, headers=record.headers, partition=number % 2)
    world.learn(streaming={"idle_flush_seconds": NEVER_SECONDS})
    for number, record in enumerate(RECORDS[120:200]):
        world.log.append(record.value, key=record.key, headers=record.headers, partition=number % 2)
    world.log.truncate_before(1, 70)
    with pytest.raises(LogGap, match=r"digits.samples-1 begins at offset 70"):
        world.process().start()
    assert world.learn(accept_gap=True).records == 40 + 30
    assert world.newest().offsets == {Partition("digits.samples", 0): 100, Partition("digits.samples", 1): 100}


def test_another_branch_records_its_leave_too(world: World) -> None:
    """It tells nobody, but its next start must not ask again."""
    store = SnapshotStore(world.folder / "trial")
    world.learn(max_records=60, branch="trial", store=store)
    entries = store.entries()
    world.log.truncate_before(0, entries[-1].offsets[world.partition] + 7)
    world.process(branch="trial", store=store, accept_gap=True).start()
    assert len(store.entries()) == min(len(entries) + 1, 3)
    world.process(branch="trial", store=store).start()


def test_what_retention_took_of_a_partition_that_came_later_is_a_gap_too(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write(RECORDS[:120])
    world.learn()
    world.log.add_partitions(1)
    for record in RECORDS[120:150]:
        world.log.append(record.value, key=record.key, headers=record.headers, partition=1)
    world.log.truncate_before(1, 6)
    with pytest.raises(LogGap, match=r"digits.samples-1 begins at offset 6, but this state needs it from 0"):
        world.process().start()
    assert world.learn(accept_gap=True).records == 24
