"""The learner's process in a world in memory: the same model after every kill, and what it does in trouble."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers import checkpointing, topics
from consumers.commit_log import BrokerUnavailable, LearnerFenced, OutboxRefused
from consumers.commit_thread import CommitThread
from consumers.events import event_id
from consumers.learner_process import LearnerProcess
from consumers.log_gap import LogGap
from consumers.observers import Observer
from consumers.record_source import LogTruncated, SourceUnavailable
from model_store.snapshot import OutboxMessage
from pipeline.learner import Learner, UpdateReport
from pipeline.record import Partition
from pipeline.settings import LearnerSettings
from pipeline.state import Json, StateTree
from pipeline.stream_learner import StepReport, StreamLearner
from pipeline.user_error import UserError
from tests.consumers.digit_records import Written, digit, digit_stream, of_fate, spoilt
from tests.consumers.learner_world import (
    STREAM,
    CommitLogThatCalls,
    FullDisk,
    Killed,
    KilledAfterSteps,
    KilledAfterTelling,
    KilledBeforeTelling,
    LostSource,
    UnremovableSnapshots,
    Witness,
    World,
    learner_settings,
    run,
)

RECORDS = digit_stream(90)
GROUP = f"palimpsest.{STREAM}.main.learner"


def bad_offsets(records: Sequence[Written]) -> list[int]:
    return [offset for offset, record in enumerate(records) if record.fate == "bad"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What becomes of the records when nothing goes wrong."""
    world = World(tmp_path_factory.mktemp("undisturbed"))
    world.write(RECORDS)
    world.learn()
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.write(RECORDS)
    return world


def start(process: LearnerProcess) -> LearnerProcess:
    process.start()
    return process


# -- one life ----------------------------------------------------------------------------------------------------------


def test_every_record_is_trained_on_held_out_dropped_or_dead(world: World) -> None:
    witness = Witness()
    report = world.learn(observer=witness)
    learner = world.newest().state
    fates = Counter(record.fate for record in RECORDS)
    assert report.records == learner["records_consumed"] == len(RECORDS)
    assert report.stopped_by == "idle"
    assert sum(len(step.batch.duplicates) for step in witness.steps) == fates["repeat"]
    assert sum(len(step.batch.dead) for step in witness.steps) == fates["bad"]
    trained, held_out = learner["records_trained"], learner["records_held_out"]
    assert isinstance(trained, int)
    assert isinstance(held_out, int)
    assert trained + held_out == fates["good"]
    assert 0.08 < held_out / fates["good"] < 0.25  # 15 % of 270: the standard deviation is 2.2 %
    assert world.newest().offsets == {world.partition: len(RECORDS)}
    assert world.commits.committed[f"palimpsest.{STREAM}.main.learner"].offsets == {world.partition: len(RECORDS)}


def test_it_remembers_and_plain_fine_tuning_does_not(tmp_path: Path) -> None:
    """Six digits, two at a time, 250 images each: plain fine-tuning keeps the last two, a third of them."""

    def accuracy(retention: dict[str, Any]) -> float:
        world = World(
            tmp_path / f"{len(retention)}",
            learner_settings(
                batch_size=5,
                optimizer={"learning_rate": 0.1},
                replay={"capacity": 200, "draw_size": 64},
                retention=retention,
            ),
        )
        world.write(digit_stream(250, clean=True))
        witness = Witness()
        world.learn(observer=witness)
        average = witness.evaluations[-1].average_accuracy
        assert average is not None
        return average

    assert accuracy({"der_pp": {}, "ewc_pp": {}}) > 0.75
    assert accuracy({}) < 0.5


def test_dead_letters_hold_the_record_unchanged_and_why(world: World) -> None:
    world.learn()
    assert world.dead_offsets() == bad_offsets(RECORDS)
    for message, record in zip(world.dead_letters(), of_fate(RECORDS, "bad"), strict=True):
        assert (message.key, message.value) == (record.key, record.value)
        assert message.headers[: len(record.headers)] == record.headers
        added = dict(message.headers[len(record.headers) :])
        assert set(added) == {
            "palimpsest-reason",
            "palimpsest-detail",
            "palimpsest-topic",
            "palimpsest-partition",
            "palimpsest-offset",
            "palimpsest-timestamp-ms",
        }
    reasons = Counter(dict(message.headers)["palimpsest-reason"] for message in world.dead_letters())
    assert set(reasons) == {b"no_label", b"broken_image", b"unknown_content_type", b"no_payload"}


def test_held_out_samples_never_reach_an_update(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[bytes] = []
    original = Learner.update

    def spy(self: Learner, x: np.ndarray, labels: Sequence[str], **further: Any) -> UpdateReport:
        updates.extend(row.tobytes() for row in x)
        return original(self, x, labels, **further)

    monkeypatch.setattr(Learner, "update", spy)
    process = start(world.process())
    run(process)
    hold_out = process.learner.hold_out
    held_out = {row.tobytes() for label in hold_out.classes for row in hold_out.samples(label)}
    assert len(held_out) > 20
    assert len(updates) == process.learner.records_trained
    assert not held_out & set(updates)


def test_all_records_of_a_subject_share_its_fate(tmp_path: Path) -> None:
    """Twelve shifted copies of one original are held out together or trained on together."""
    world = World(tmp_path)
    records = []
    for subject in range(40):
        for copy in range(5):
            record = digit(subject, ce_id=f"{subject}-{copy}")
            records.append(
                Written(value=record.value, headers=(*record.headers, ("ce_subject", f"original-{subject}".encode())))
            )
    world.write(records)
    witness = Witness()
    world.learn(observer=witness)
    trained = {sample.subject for step in witness.steps for sample in step.batch.trainable}
    held_out = {sample.subject for step in witness.steps for sample in step.batch.held_out}
    assert not trained & held_out
    assert len(trained | held_out) == 40
    assert 1 <= len(held_out) <= 15


def test_new_classes_and_nothing_else_of_a_class_is_told_as_events(world: World) -> None:
    world.learn()
    told = [json.loads(message.value or b"")["class"] for message in world.events("new_class")]
    assert told == world.newest().facts["classes"]
    assert sorted(told) == ["0", "1", "2", "3", "4", "5"]


def test_another_branch_tells_nothing_and_learns_the_same(world: World, undisturbed: World) -> None:
    world.learn(branch="what-if", snapshots={"max_outbox_messages": 1})
    assert world.commits.messages == []
    assert list(world.commits.committed) == [f"palimpsest.{STREAM}.what-if.learner"]
    assert world.newest().outbox == ()
    assert world.newest().fingerprint() == undisturbed.newest().fingerprint()


# -- many lives, one model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(1,), (7, 90), (50, 51, 52), (64, 64, 64)])
def test_stopping_changes_nothing(world: World, undisturbed: World, pieces: Sequence[int]) -> None:
    for records in pieces:
        report = world.learn(max_records=records)
        assert report.stopped_by == "max_records"
        assert records <= report.records < records + 30, "it ends with the batch that reaches so many"
    world.learn()
    same_as_undisturbed(world, undisturbed)


def test_one_process_may_run_several_times(world: World, undisturbed: World) -> None:
    process = start(world.process())
    while run(process, max_records=37).stopped_by == "max_records":
        pass
    same_as_undisturbed(world, undisturbed)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_a_kill_between_steps_changes_nothing(world: World, undisturbed: World, steps: int) -> None:
    with pytest.raises(Killed):
        world.learn(observer=KilledAfterSteps(steps))
    world.learn()
    same_as_undisturbed(world, undisturbed)


@pytest.mark.parametrize("fault", [KilledBeforeTelling, KilledAfterTelling])
@pytest.mark.parametrize("commits", [1, 3])
def test_a_kill_within_the_commit_changes_nothing(
    world: World, undisturbed: World, fault: Callable[..., Any], commits: int
) -> None:
    with pytest.raises(Killed):
        world.learn(commit_log=fault(world.commit_log(), commits=commits))
    sequence = world.newest().sequence
    process = start(world.process())
    committed = world.commits.committed[f"palimpsest.{STREAM}.main.learner"]
    assert (committed.generation, committed.sequence) == (2, sequence), "what was written is told by the start"
    assert set(world.dead_offsets()) == {
        offset for offset in bad_offsets(RECORDS) if offset < committed.offsets[world.partition]
    }
    run(process)
    same_as_undisturbed(world, undisturbed)


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("damage", ["deleted", "damaged"])
def test_a_fall_back_to_an_older_snapshot_changes_nothing(
    world: World, undisturbed: World, damage: str, lost: int
) -> None:
    world.learn(max_records=200)
    told = len(world.dead_letters())
    assert told > 10
    lose_newest(world, lost, damage)
    witness = Witness()
    process = start(world.process(observer=witness))
    assert len(witness.warnings) == (lost if damage == "damaged" else 0)
    run(process)
    same_as_undisturbed(world, undisturbed)
    assert len(world.events("snapshot_passed_over")) == (lost if damage == "damaged" else 0)


def test_a_fall_back_onto_a_snapshot_that_was_never_told(world: World, undisturbed: World) -> None:
    """The newer snapshot was told and lost; the older one, of a learner that died before telling it, is told now."""
    world.learn(max_records=60)
    with pytest.raises(Killed):
        world.learn(commit_log=KilledBeforeTelling(world.commit_log(), commits=2))
    lose_newest(world, 1, "damaged")
    world.learn()
    same_as_undisturbed(world, undisturbed)


def test_a_kill_before_the_learner_is_past_where_it_fell_from(world: World, undisturbed: World) -> None:
    """What it has not come to yet was told before its fall all the same, and its successor must know."""
    often = {"every_records": 20, "keep": 20}
    world.learn(max_records=200, snapshots=often)
    lose_newest(world, 4, "deleted")
    with pytest.raises(Killed):
        world.learn(commit_log=KilledAfterTelling(world.commit_log(), commits=1), snapshots=often)
    assert world.newest().offsets[world.partition] < max(world.dead_offsets())
    world.learn()
    same_as_undisturbed(world, undisturbed)


def test_offsets_that_the_brokers_forgot_are_no_reason_to_tell_twice(world: World, undisturbed: World) -> None:
    world.learn(max_records=150)
    world.commits.committed.clear()
    process = start(world.process())
    assert world.commits.committed[f"palimpsest.{STREAM}.main.learner"].generation == 2
    run(process)
    same_as_undisturbed(world, undisturbed)


def test_what_a_replaced_learner_wrote_is_no_starting_point(world: World, undisturbed: World) -> None:
    """It wrote a snapshot, was replaced before it could tell, and its successor has not written one yet."""
    world.learn(max_records=60)

    def replace() -> None:
        world.commit_log().start()

    late = start(world.process(commit_log=CommitLogThatCalls(world.commit_log(), replace)))
    with pytest.raises(LearnerFenced):
        run(late, max_records=60)
    stray = world.newest_entry()
    told = world.commits.committed[GROUP]
    assert stray.sequence > told.sequence
    assert stray.generation < told.generation
    process = start(world.process())
    assert process.learner.records_consumed < 100, "the one before is gone on from"
    assert stray.path not in [entry.path for entry in world.store.entries()]
    run(process)
    same_as_undisturbed(world, undisturbed)


def test_commits_beside_the_training_change_nothing(world: World, undisturbed: World) -> None:
    for steps in (3, 7, 2, 5):
        with pytest.raises(Killed):
            world.learn(observer=KilledAfterSteps(steps), commits=CommitThread(), snapshots={"every_records": 15})
    world.learn(commits=CommitThread(), snapshots={"every_records": 15})
    same_as_undisturbed(world, undisturbed)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_course_of_kills_stops_and_losses_gives_the_same_model(world: World, undisturbed: World, seed: int) -> None:
    go_through_troubles(world, seed, lives=8)
    same_as_undisturbed(world, undisturbed)


def test_batch_norm_momentum_and_augmentation_are_state_or_keyed_too(tmp_path: Path) -> None:
    """The same with a ResNet whose head grows, whose statistics run, and whose images are cropped and mirrored."""
    settings = learner_settings(
        network={"backbone": "resnet18", "options": {"width": 2}, "initial_columns": 2},
        augmentation={"crop_padding": 1, "horizontal_flip": True},
        optimizer={"momentum": 0.9},
        replay={"capacity": 30, "draw_size": 8},
    )
    undisturbed, troubled = World(tmp_path / "undisturbed", settings), World(tmp_path / "troubled", settings)
    for world in (undisturbed, troubled):
        world.write(RECORDS[:150])
    undisturbed.learn()
    go_through_troubles(troubled, seed=1, lives=4)
    assert troubled.newest().fingerprint() == undisturbed.newest().fingerprint()


def go_through_troubles(world: World, seed: int, *, lives: int) -> None:
    """Stops, kills and losses of snapshots, each anywhere; and at last a learner that comes to the end of the log."""
    choose = random.Random(seed)
    for _ in range(lives):
        parts: dict[str, Any] = {"snapshots": {"every_records": choose.randint(10, 60)}}
        match choose.randrange(5):
            case 0:
                parts["max_records"] = choose.randint(1, 60)
            case 1:
                parts["observer"] = KilledAfterSteps(choose.randint(1, 7))
            case 2:
                parts["commit_log"] = KilledBeforeTelling(world.commit_log(), commits=choose.randint(1, 2))
            case 3:
                parts["commit_log"] = KilledAfterTelling(world.commit_log(), commits=choose.randint(1, 2))
            case 4 if len(world.whole_entries()) >= 2:
                lose_newest(world, 1, choose.choice(["deleted", "damaged"]))
                parts["observer"] = KilledAfterSteps(choose.randint(1, 7))
        with contextlib.suppress(Killed):
            world.learn(**parts)
    world.learn()


def lose_newest(world: World, count: int, damage: str) -> None:
    for entry in world.whole_entries()[-count:]:
        if damage == "deleted":
            shutil.rmtree(entry.path)
        else:
            file = entry.path / "state.safetensors"
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)


def same_as_undisturbed(world: World, undisturbed: World) -> None:
    assert world.newest().fingerprint() == undisturbed.newest().fingerprint()
    assert sorted(world.dead_offsets()) == bad_offsets(RECORDS), "each bad record exactly once"
    assert {event_id(m.headers) for m in world.events("new_class")} == {
        event_id(m.headers) for m in undisturbed.events("new_class")
    }


# -- recorded decisions ------------------------------------------------------------------------------------------------


def flushed_at(messages: Sequence[OutboxMessage]) -> list[Json]:
    return [json.loads(message.value or b"")["offsets"] for message in messages]


def test_an_idle_flush_is_recorded_told_and_obeyed_by_a_replay(tmp_path: Path) -> None:
    records = digit_stream(90)
    first = World(tmp_path / "first")
    first.write(records[:103])
    first.learn()  # ends idle: the partial batch is learnt
    first.write(records[103:])
    first.learn()
    decisions = first.newest().state["decisions"]
    assert isinstance(decisions, list)
    offsets: list[Json] = [[[first.log.topic, 0, 103]], [[first.log.topic, 0, len(records)]]]
    assert decisions == [{"kind": "idle_flush", "offsets": span} for span in offsets]
    assert flushed_at(first.events("idle_flush")) == offsets

    in_one_go = World(tmp_path / "in_one_go")
    in_one_go.write(records)
    in_one_go.learn()
    assert in_one_go.newest().fingerprint() != first.newest().fingerprint(), "the flush shaped the model"

    replay = World(tmp_path / "replay")
    replay.write(records)
    process = start(replay.process())
    process.learner.obey(decisions)  # type: ignore[arg-type]
    run(process)
    assert replay.newest().fingerprint() == first.newest().fingerprint()


def test_a_flush_is_obeyed_after_a_fall_back_to_before_it(tmp_path: Path) -> None:
    records = digit_stream(90)

    def learnt(folder: Path, *, loses: bool) -> World:
        world = World(folder)
        world.write(records[:103])
        world.learn(snapshots={"keep": 10, "every_records": 20})
        if loses:
            lose_newest(world, 2, "deleted")
        world.write(records[103:])
        world.learn()
        return world

    well, fallen = learnt(tmp_path / "well", loses=False), learnt(tmp_path / "fallen", loses=True)
    assert fallen.newest().fingerprint() == well.newest().fingerprint()
    assert flushed_at(fallen.events("idle_flush")) == flushed_at(well.events("idle_flush")), "told once"
    assert fallen.dead_offsets() == well.dead_offsets()


def test_a_partial_batch_waits_for_the_idle_time(tmp_path: Path) -> None:
    """Without idleness it stays unread: a stop drops it, and its records are read again."""
    world = World(tmp_path)
    world.write(digit_stream(2, clean=True))
    process = start(world.process())
    stop = threading.Event()
    turns = 0

    class StopsAfterTurns(Observer):
        def turned(self, lag_records: Mapping[Partition, int], away_seconds: float | None = None) -> None:
            nonlocal turns
            turns += 1
            if turns >= 5 and process.learner.assembler.pending_records:
                stop.set()

    process._observer = StopsAfterTurns()
    process.run(stop=stop)
    assert process.learner.records_consumed == 0
    assert world.learn(streaming={"idle_flush_seconds": 0.01}).records == 6


def test_a_trickle_is_learnt_at_every_lull_and_committed_by_time(tmp_path: Path) -> None:
    """One record at a time: each is learnt by itself, and all of them share the snapshot of the stop."""
    world, witness = World(tmp_path), Witness()
    settings = {"every_records": None}
    process = start(world.process(observer=witness, snapshots=settings, streaming={"idle_flush_seconds": 0.01}))
    with running(process):
        for count, record in enumerate(digit_stream(2, clean=True), start=1):
            world.write([record])
            wait_until(lambda count=count: process.learner.records_consumed == count)  # type: ignore[misc]
        turn_some_more(witness)
        assert witness.commits == []
    assert len(witness.commits) == 1
    assert world.commits.committed[GROUP].offsets == {world.partition: 6}


def test_the_lag_that_others_see_goes_to_nothing_in_a_lull(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write(digit_stream(2, clean=True))
    settings = {"every_records": None, "every_seconds": 0.05}
    process = start(world.process(snapshots=settings, streaming={"idle_flush_seconds": 0.01}))
    with running(process):
        wait_until(lambda: world.commits.committed[GROUP].offsets == {world.partition: 6})
        world.log.append_marker()
        wait_until(lambda: world.commits.committed[GROUP].offsets == {world.partition: 7})


@contextlib.contextmanager
def running(process: LearnerProcess) -> Iterator[None]:
    """The process in a thread of its own, stopped at the end."""
    stop = threading.Event()
    thread = threading.Thread(target=process.run, kwargs={"stop": stop})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def turn_some_more(witness: Witness) -> None:
    """Let the loop take more turns, in which a commit would come if one was to come."""
    turns = witness.turns
    wait_until(lambda: witness.turns >= turns + 3)


# -- the end of a run --------------------------------------------------------------------------------------------------


class StopsAfter(Witness):
    """Asks for a stop, as SIGTERM does, while a step is under way."""

    def __init__(self, stop: threading.Event, steps: int) -> None:
        super().__init__()
        self._stop = stop
        self._left = steps

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        super().stepped(learner, report)
        self._left -= 1
        if self._left == 0:
            self._stop.set()


def test_a_stop_finishes_the_update_and_commits_it(world: World) -> None:
    stop = threading.Event()
    witness = StopsAfter(stop, steps=4)
    process = start(world.process(observer=witness))
    report = process.run(stop=stop)
    assert report.stopped_by == "signal"
    assert len(witness.steps) == 4
    consumed = sum(step.batch.records for step in witness.steps)
    assert report.records == consumed
    assert world.newest().offsets == {world.partition: consumed}
    assert world.commits.committed[f"palimpsest.{STREAM}.main.learner"].offsets == {world.partition: consumed}
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith(("palimpsest-decode", "palimpsest-commit"))
    ]


def test_max_records_counts_what_an_idle_flush_consumed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write(digit_stream(5, clean=True))
    process = start(world.process(streaming={"idle_flush_seconds": 0.01}))
    report = process.run(stop=threading.Event(), max_records=15)
    assert (report.stopped_by, report.records) == ("max_records", 15)


# -- the start ---------------------------------------------------------------------------------------------------------


def test_each_start_is_a_generation_of_its_own(world: World) -> None:
    numbers = []
    for _ in range(3):
        world.learn(max_records=40)
        numbers.append((world.newest().generation, world.newest().sequence))
    assert [generation for generation, _ in numbers] == [1, 2, 3]
    assert [sequence for _, sequence in numbers] == sorted({sequence for _, sequence in numbers})
    assert set(world.commits.epochs.values()) == {3}


def test_the_newest_snapshot_is_chosen_by_number_not_by_offsets(world: World) -> None:
    """A fenced learner was further in the log; its successor's snapshot counts."""

    class IsOvertaken(Witness):
        def stepped(self, learner: StreamLearner, report: StepReport) -> None:
            super().stepped(learner, report)
            if len(self.steps) == 7:
                world.learn(max_records=1)

    with pytest.raises(LearnerFenced):
        world.learn(observer=IsOvertaken(), snapshots={"every_records": 120})
    older, newer = world.store.entries()
    assert (older.generation, newer.generation) == (1, 2)
    assert older.offsets[world.partition] > newer.offsets[world.partition]
    process = start(world.process())
    assert process.learner.records_consumed == newer.facts["records_consumed"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 11}, "learner.batch_size is 11, but this state was made with 10"),
        ({"seed": 1}, "learner.seed is 1"),
        ({"retention": {"er": {}}}, "learner.retention is \\['er'\\]"),
        ({"retention": {"der_pp": {"alpha": 0.9}, "ewc_pp": {}}}, "learner.retention.der_pp.alpha is 0.9"),
        ({"network": {"max_classes": 7}}, "learner.network.max_classes is 7"),
        ({"hold_out": {"salt": "other"}}, "learner.hold_out.salt is 'other'"),
    ],
)
def test_a_fixed_setting_is_refused_by_name(world: World, changes: dict[str, Any], named: str) -> None:
    world.learn(max_records=20)
    with pytest.raises(UserError, match=named):
        world.process(settings=learner_settings(**changes)).start()
    world.process(settings=learner_settings(threads=2)).start()  # changeable


def test_a_state_of_something_else_is_refused_before_anybody_is_fenced(world: World) -> None:
    alive = start(world.process())
    run(alive, max_records=20)
    with pytest.raises(UserError, match=r"holds the state of stream 'digits', not 'letters'"):
        world.process(stream="letters").start()
    with pytest.raises(UserError, match=r"holds the state of branch 'main', not 'what-if'"):
        world.process(branch="what-if").start()
    world.topic_id = "made anew"
    with pytest.raises(LogGap, match=r"digits.samples-0 was made anew"):
        world.process().start()
    world.topic_id, world.cluster_id = "topic", "another"
    with pytest.raises(LogGap, match=r"was learnt on Kafka cluster cluster, these brokers belong to another"):
        world.process().start()
    assert run(alive, max_records=20).stopped_by == "max_records"


def test_an_empty_state_is_refused_before_anybody_is_fenced(world: World) -> None:
    alive = start(world.process())
    run(alive, max_records=60)
    mistyped = World(world.folder / "mistyped", world.settings, world.log, world.commits)
    with pytest.raises(UserError, match="holds none that is whole"):
        mistyped.process().start()
    kept = world.log._records[world.partition]
    world.log._records[world.partition] = kept[:10]
    with pytest.raises(LogGap, match="the log lost its tail"):
        world.process().start()
    world.log._records[world.partition] = kept
    assert world.commits.epochs[GROUP] == 1
    assert run(alive, max_records=20).stopped_by == "max_records"


def test_what_the_older_learner_commits_before_it_is_fenced_is_gone_on_from(world: World, undisturbed: World) -> None:
    """Between the newer learner's look and its claim the older one writes another snapshot."""
    older = start(world.process())
    run(older, max_records=60)

    class CommitsMeanwhile(CommitLogThatCalls):
        def start(self, *, known_generation: int = 0, stop: threading.Event | None = None) -> Any:
            run(older, max_records=60)
            return super().start(known_generation=known_generation, stop=stop)

    newer = start(world.process(commit_log=CommitsMeanwhile(world.commit_log(), lambda: None)))
    assert newer.learner.records_consumed == older.learner.records_consumed > 100
    run(newer)
    same_as_undisturbed(world, undisturbed)


def test_a_rewritten_tail_is_refused(world: World) -> None:
    world.learn(max_records=60)
    consumed = world.newest().offsets[world.partition]
    records = world.log._records[world.partition]
    kept = list(records)
    world.log._records[world.partition] = kept[: consumed - 1]
    with pytest.raises(LogGap, match="the log lost its tail"):
        world.process().start()
    world.write(digit_stream(60, seed=5)[:70])
    with pytest.raises(LogGap, match=f"the record at {world.partition} offset {consumed - 1} is not the one"):
        world.process().start()
    world.log._records[world.partition] = kept
    world.process().start()


def test_records_that_retention_deleted_before_they_were_learnt_are_missed(world: World) -> None:
    world.learn(max_records=60)
    consumed = world.newest().offsets[world.partition]
    world.log.truncate_before(0, consumed)
    world.process().start()  # the last record is gone, and so is nothing that is needed
    world.log.truncate_before(0, consumed + 1)
    with pytest.raises(LogGap, match="retention deleted what was not yet learnt"):
        world.process().start()


def test_a_lost_state_is_not_begun_anew(world: World) -> None:
    world.learn(max_records=60)
    shutil.rmtree(world.folder / "snapshots")
    with pytest.raises(UserError, match=r"has committed snapshot \d+, but .* holds none that is whole") as refused:
        world.process().start()
    assert f"kafka-consumer-groups.sh --bootstrap-server HOST:PORT --delete --group {GROUP}" in str(refused.value)
    world.process(branch="another").start()
    del world.commits.committed[GROUP]  # what that command does
    assert world.learn().records == len(RECORDS)


def test_a_shape_known_from_held_out_samples_alone_survives_a_restart(tmp_path: Path) -> None:
    """The first good record fixes the shape, also where it is held out and nothing was trained on yet."""
    settings = learner_settings(hold_out={"share": 1.0})
    world = World(tmp_path, settings)
    world.write([digit(number) for number in range(12)])
    world.learn()
    vector = [("content-type", b"application/json"), ("ce_label", b"1")]
    world.log.append(b'{"payload": [1.0, 2.0]}', headers=vector)
    process = start(world.process())
    run(process)
    assert world.dead_offsets() == [12]
    assert process.learner.hold_out.samples("0").shape[1:] == (1, 8, 8)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [LogTruncated("gone"), SourceUnavailable("away"), UserError("snappy")])
def test_what_was_learnt_is_kept_when_reading_fails(world: World, error: Exception) -> None:
    process = start(world.process(source=LostSource(world.log, after_records=75, error=error)))
    with pytest.raises(type(error)):
        run(process)
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith(("palimpsest-decode", "palimpsest-commit"))
    ]
    consumed = process.learner.records_consumed
    assert 60 < consumed <= 75
    assert world.newest().offsets == {world.partition: consumed}
    assert world.commits.committed[f"palimpsest.{STREAM}.main.learner"].offsets == {world.partition: consumed}


@pytest.mark.parametrize("where", ["commit", "heartbeat"])
def test_a_fenced_learner_ends_and_writes_nothing_more(world: World, undisturbed: World, where: str) -> None:
    """A second learner on another machine takes over while the first is learning."""
    usurper = World(world.folder / "elsewhere", world.settings, world.log, world.commits)
    after = 5

    class TakesOver(Witness):
        def stepped(self, learner: StreamLearner, report: StepReport) -> None:
            super().stepped(learner, report)
            if len(self.steps) == after:
                usurper.commit_log().start()

    witness = TakesOver()
    settings = {"every_records": 45 if where == "commit" else None}
    process = start(world.process(observer=witness, snapshots=settings, streaming={"heartbeat_seconds": 0.001}))
    before = len(world.store.entries())
    with pytest.raises(LearnerFenced):
        run(process)
    assert len(witness.steps) <= after + 4, "it notices at once"
    assert len(world.store.entries()) <= before + 2
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith(("palimpsest-decode", "palimpsest-commit"))
    ]
    # What it wrote is no harm: the next start is of a higher generation, and goes on to the same model.
    world.learn()
    same_as_undisturbed(world, undisturbed)


def test_a_refused_outbox_leaves_as_such(world: World) -> None:
    def refuse() -> None:
        raise OutboxRefused("too large")

    process = start(world.process(commit_log=CommitLogThatCalls(world.commit_log(), refuse)))
    with pytest.raises(OutboxRefused):
        run(process)
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith(("palimpsest-decode", "palimpsest-commit"))
    ]


def test_a_commit_waits_for_brokers_that_are_away(world: World, undisturbed: World) -> None:
    class BringsThemBack(Witness):
        def warned(self, message: str) -> None:
            super().warned(message)
            world.commits.is_away = False

    calls: list[None] = []

    def goes_away_once() -> None:
        calls.append(None)
        if len(calls) == 2:
            world.commits.is_away = True

    witness = BringsThemBack()
    world.learn(commit_log=CommitLogThatCalls(world.commit_log(), goes_away_once), observer=witness)
    assert [message for message in witness.warnings if "waits for the brokers" in message]
    same_as_undisturbed(world, undisturbed)


def test_a_stop_while_the_brokers_are_away_ends_and_the_next_start_tells(world: World, undisturbed: World) -> None:
    stop = threading.Event()

    class StopsInstead(Witness):
        def warned(self, message: str) -> None:
            stop.set()

    process = start(world.process(observer=StopsInstead()))
    world.commits.is_away = True
    with pytest.raises(BrokerUnavailable):
        process.run(stop=stop)
    world.commits.is_away = False
    assert world.newest().sequence == 1
    assert world.commits.committed[f"palimpsest.{STREAM}.main.learner"].sequence == 0
    world.learn()
    same_as_undisturbed(world, undisturbed)


def test_a_full_disk_stops_nothing_and_is_not_tried_at_every_batch(
    world: World, undisturbed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "_DISK_RETRY_SECONDS", 3_600.0)
    disk = FullDisk(world.folder / "snapshots")

    class FreesIt(Witness):
        def stepped(self, learner: StreamLearner, report: StepReport) -> None:
            super().stepped(learner, report)
            disk.is_full = report.records_consumed < 250

    witness = FreesIt()
    world.learn(store=disk, observer=witness, snapshots={"max_outbox_messages": 10, "every_records": 1})
    assert len(witness.failures) == 1, "the outbox was full from then on, and the next try is some seconds away"
    assert len(witness.steps) > 20
    assert disk.tries == 2, "the second is the stop's"
    same_as_undisturbed(world, undisturbed)


def test_a_full_disk_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing, "_DISK_RETRY_SECONDS", 0.0)
    disk = FullDisk(world.folder / "snapshots")
    witness = Witness()
    process = start(world.process(store=disk, observer=witness))
    with pytest.raises(OSError, match="No space left"):
        run(process)  # the last one must not be lost without a word
    assert disk.tries == len(witness.failures) > 3
    disk.is_full = False
    run(process)
    assert sorted(world.dead_offsets()) == bad_offsets(RECORDS)


def test_older_snapshots_that_cannot_be_removed_are_no_reason_to_tell_twice(world: World) -> None:
    witness = Witness()
    world.learn(store=UnremovableSnapshots(world.folder / "snapshots"), observer=witness)
    assert witness.failures == []
    assert "older snapshots could not be removed" in witness.warnings[0]
    assert world.dead_offsets() == bad_offsets(RECORDS)


def test_learning_waits_where_more_cannot_be_told_than_memory_may_hold(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "_DISK_RETRY_SECONDS", 0.01)
    disk = FullDisk(world.folder / "snapshots")

    class FreesItAfterAWhile(Witness):
        def warned(self, message: str) -> None:
            super().warned(message)
            disk.is_full = len(self.warnings) < 5

    witness = FreesItAfterAWhile()
    world.learn(store=disk, observer=witness, snapshots={"max_outbox_messages": 3, "every_records": None})
    assert witness.warnings[0] == "learning waits: 12 messages cannot be told"
    assert len(witness.warnings) == 5
    assert sorted(world.dead_offsets()) == bad_offsets(RECORDS)


def test_a_full_outbox_forces_a_snapshot(world: World) -> None:
    witness = Witness()
    world.learn(observer=witness, snapshots={"every_records": None, "max_outbox_messages": 5})
    assert len(witness.commits) > 4


def test_snapshots_come_by_time_though_heartbeats_come_more_often(world: World) -> None:
    """With a snapshot every 50 ms and a heartbeat every 5 ms, the heartbeats must not put snapshots off for ever."""

    class Slow(Witness):
        def stepped(self, learner: StreamLearner, report: StepReport) -> None:
            super().stepped(learner, report)
            time.sleep(0.01)

    witness = Slow()
    world.learn(
        observer=witness,
        snapshots={"every_seconds": 0.05, "every_records": None},
        streaming={"heartbeat_seconds": 0.005},
    )
    assert len(witness.commits) >= 3


# -- versions ----------------------------------------------------------------------------------------------------------


class RememberingRegistrar:
    """Registers at once."""

    def __init__(self) -> None:
        self.submitted: list[dict[str, Any]] = []
        self.untold: list[Mapping[str, Json]] = []
        self.acknowledged = 0
        self.held: set[str] = set()

    def prepare(self, learner: StreamLearner, **what: Any) -> Callable[[StateTree, str], None]:
        about = what | {"at": learner.records_consumed}

        def submit(learner_state: StateTree, snapshot_sha256: str) -> None:
            assert learner_state["updates"] == about["at_update"]
            self.submit(about | {"snapshot_sha256": snapshot_sha256})

        about["at_update"] = learner.learner.updates if learner.learner is not None else 0
        return submit

    def submit(self, what: dict[str, Any]) -> None:
        self.submitted.append(what)
        self.untold.append({"version": len(self.submitted), "snapshot_sha256": what["snapshot_sha256"]})

    def pinned(self) -> Collection[str]:
        return ()

    def holds(self, snapshot_sha256: str) -> bool:
        return snapshot_sha256 in self.held

    def collect(self) -> Sequence[Mapping[str, Json]]:
        untold, self.untold = self.untold, []
        return untold

    def acknowledge(self) -> None:
        self.acknowledged += 1

    def close(self, goes_on: Callable[[float], bool]) -> int:
        return 0


def test_versions_are_submitted_by_records_and_at_the_end_and_told(world: World) -> None:
    registrar = RememberingRegistrar()
    world.learn(versions=registrar, registry={"every_records": 80})
    assert [what["trigger"] for what in registrar.submitted] == ["periodic", "periodic", "periodic", "final"]
    since = [what["since_records"] for what in registrar.submitted]
    assert since == [0, *(what["at"] for what in registrar.submitted[:-1])]
    assert all(80 <= what["at"] - what["since_records"] < 110 for what in registrar.submitted[:-1])
    assert registrar.submitted[-1]["at"] == len(RECORDS)
    told = [json.loads(message.value or b"")["version"] for message in world.events("version_registered")]
    assert told == [1, 2, 3, 4]
    offsets = [what["offsets"][world.partition] for what in registrar.submitted]
    assert offsets[-1] == len(RECORDS)


def test_a_version_is_judged_by_an_evaluation_of_its_own(world: World) -> None:
    registrar, witness = RememberingRegistrar(), Witness()
    world.learn(versions=registrar, observer=witness, registry={"every_records": 80})
    assert [what["evaluation"].at_records for what in registrar.submitted] == [
        what["at"] for what in registrar.submitted
    ]
    assert registrar.submitted[-1]["evaluation"] == witness.evaluations[-1], "what the run's summary says"


def test_a_version_that_waits_already_is_not_submitted_by_the_next_start(world: World) -> None:
    class DiesAfterSubmitting(RememberingRegistrar):
        def submit(self, what: dict[str, Any]) -> None:
            raise Killed

    with pytest.raises(Killed):
        world.learn(versions=DiesAfterSubmitting(), registry={"every_records": 100})
    registrar = RememberingRegistrar()
    registrar.held.add(world.newest_entry().sha256)
    start(world.process(versions=registrar))
    assert registrar.submitted == []


def test_a_version_is_due_again_where_its_snapshot_could_not_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "_DISK_RETRY_SECONDS", 0.0)
    disk = FullDisk(world.folder / "snapshots")

    class FreesIt(Observer):
        def stepped(self, learner: StreamLearner, report: StepReport) -> None:
            disk.is_full = report.records_consumed < 150

    registrar = RememberingRegistrar()
    world.learn(store=disk, versions=registrar, registry={"every_records": 100}, observer=FreesIt())
    assert registrar.submitted[0]["since_records"] == 0
    assert 150 <= registrar.submitted[0]["at"] < 180


def test_a_version_whose_submission_was_killed_is_submitted_by_the_next_start(world: World) -> None:
    class DiesSubmitting(RememberingRegistrar):
        def submit(self, what: dict[str, Any]) -> None:
            raise Killed

    with pytest.raises(Killed):
        world.learn(versions=DiesSubmitting(), registry={"every_records": 100})
    registrar = RememberingRegistrar()
    process = start(world.process(versions=registrar))
    assert registrar.submitted[0]["snapshot_sha256"] == world.newest_entry().sha256
    assert registrar.submitted[0]["trigger"] == "periodic"
    assert process.learner.records_consumed == registrar.submitted[0]["at"]


# -- the settings are the model's --------------------------------------------------------------------------------------


def test_other_settings_give_another_fingerprint(tmp_path: Path, undisturbed: World) -> None:
    def fingerprint(name: str, settings: LearnerSettings) -> str:
        world = World(tmp_path / name, settings)
        world.write(RECORDS)
        world.learn()
        return world.newest().fingerprint()

    assert fingerprint("same", learner_settings()) == undisturbed.newest().fingerprint()
    assert fingerprint("seed", learner_settings(seed=1)) != undisturbed.newest().fingerprint()
    assert topics.samples(STREAM) == undisturbed.log.topic
    assert spoilt(RECORDS[0], 4).fate == "bad"
