"""An erasure in a world in memory: nothing of the subject stays, wherever it is killed, and learners go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers.commit_log import LearnerFenced
from consumers.erasure import ErasureReport, SubjectErasure
from consumers.manifest_facts import ProcessFacts
from consumers.memory_record_source import InMemoryRecordSource
from consumers.told_before import Reports
from model_store import fault_points
from pipeline.codec.cloud_event import CloudEvent
from pipeline.codec.npy import encode_npy
from pipeline.erasure import subject_hex
from pipeline.evaluation.hold_out import HoldOut
from pipeline.state import fingerprint
from pipeline.stream_learner import StepReport, StreamLearner
from pipeline.user_error import UserError
from tests.consumers.digit_records import Written
from tests.consumers.learner_world import (
    STREAM,
    Killed,
    KilledBeforeTelling,
    Witness,
    World,
    learner_settings,
    run,
)

EVE, ADAM = "eve the subject", "adam the other one"
# What stands in every raw sample of theirs, as no weight does; any four bytes in a row would do.
MARKS = {EVE: np.float32(-7.654321e-12), ADAM: np.float32(3.210987e-13)}


def written(number: int, subject: str | None, *, spoilt: bool = False) -> Written:
    """A vector that says whose it is."""
    x = np.random.Generator(np.random.Philox(key=number)).normal(size=12).astype(np.float32)
    x[:4] = number % 4
    if subject is not None:
        x[4:8] = MARKS[subject]
    event = CloudEvent(
        id=f"record-{number}",
        source="tests",
        type="sample",
        content_type="application/x-spoilt" if spoilt else "application/x-npy",
        data=encode_npy(x),
        subject=subject,
        label="abcd"[number % 4],
    )
    return Written(value=event.data, headers=tuple(event.headers()), fate="bad" if spoilt else "good")


def stream(records: int, first: int = 0) -> list[Written]:
    """Every fifth is Eve's, every fifth Adam's; some are bad."""
    subjects = {1: EVE, 3: ADAM}
    return [written(n, subjects.get(n % 5), spoilt=n % 23 in (6, 11)) for n in range(first, first + records)]


@pytest.fixture(params=["trained", "held out"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """With a salt by which Eve is trained on or held out, and Adam is trained on."""
    for number in range(1000):
        settings = learner_settings(hold_out={"share": 0.3, "salt": f"salt {number}"})
        hold_out = HoldOut(settings.hold_out)
        held_out = [hold_out.subject_key(name) % 2**64 < 0.3 * 2**64 for name in (EVE, ADAM)]
        if held_out == [request.param == "held out", False]:
            return World(tmp_path / "state", settings)
    raise AssertionError("no salt chooses so")


def key(world: World) -> int:
    return HoldOut(world.settings.hold_out).subject_key(EVE)


def erasure(world: World, **changes: Any) -> SubjectErasure:
    parts: dict[str, Any] = {
        "store": world.store,
        "source": InMemoryRecordSource(world.log),
        "commit_log": world.commit_log(),
        "facts": ProcessFacts(
            stream=STREAM,
            branch="main",
            topic=world.log.topic,
            cluster_id=world.cluster_id,
            topic_id=world.topic_id,
            state_id="",
        ),
        "reports": Reports(world.open_report, stream=STREAM, branch="main"),
        "offers": world.offers,
    }
    return SubjectErasure(**parts | changes)


def erase(world: World, subject: str = EVE, *, unknown_too: bool = False) -> ErasureReport:
    return erasure(world).erase(subject, unknown_too=unknown_too)


def files_with(world: World, subject: str) -> list[str]:
    """Files anywhere under the folder that hold a raw sample of the subject, as raw bytes or in an outbox's base64,
    or name it."""
    mark = MARKS[subject].tobytes()
    found = []
    for path in sorted(world.folder.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if mark * 2 in content or subject.encode() in content:
            found.append(str(path.relative_to(world.folder)))
    outboxes = [(entry, world.store.load(entry).outbox) for entry in world.store.entries()]
    for entry, messages in outboxes:
        found += [f"outbox of {entry.path.name}" for message in messages if mark in (message.value or b"")]
    return found


def assert_erased(world: World) -> None:
    assert files_with(world, EVE) == []
    assert files_with(world, ADAM), "the others stay"
    assert all(path.name[0] != "." for path in (world.folder / "snapshots").iterdir()), "nothing is left half done"


@pytest.fixture
def killed_at() -> Iterator[Any]:
    """`killed_at(name, number)` kills at the so-manyeth time that this point is reached."""

    def arm(name: str, number: int = 1) -> None:
        left = [number]

        def hook(reached: str) -> None:
            if reached == name:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed

        fault_points.on_fault_point(hook)

    yield arm
    fault_points.on_fault_point(None)


def test_no_raw_byte_stays_in_any_snapshot_and_the_others_stay(world: World) -> None:
    world.write(stream(200))
    world.learn()
    assert len(world.store.entries()) >= 3
    assert len(files_with(world, EVE)) >= 3, "else the test shows nothing"
    before, newest = len(world.store.entries()), world.newest()
    report = erase(world)
    assert_erased(world)
    assert report.snapshots_rewritten == before
    assert report.snapshots_removed == 0
    assert report.dead_letters > 0
    assert report.newest_reservoir_rows + report.newest_held_out_samples > 0
    assert report.reservoir_rows >= report.newest_reservoir_rows
    assert (report.newest_reservoir_rows > 0) == (report.newest_held_out_samples == 0)
    assert len(world.whole_entries()) == before + 1
    left = world.newest()
    assert (left.sequence, left.offsets) == (newest.sequence + 1, newest.offsets)
    for name in ("network", "momenta", "retention", "classes"):
        was, now = (snapshot.state["learner"] for snapshot in (newest, left))
        assert isinstance(was, dict)
        assert isinstance(now, dict)
        assert fingerprint({name: was[name]}) == fingerprint({name: now[name]})


def test_the_event_says_so_without_saying_whom_or_what(world: World) -> None:
    world.write(stream(200))
    world.learn()
    report = erase(world)
    (message,) = world.events("subject_erased")
    data = json.loads(message.value or b"")
    assert data["subject"] == subject_hex(key(world)) == report.subject
    assert data["until"] == [[world.log.topic, 0, 200]]
    assert (data["reservoir_rows"], data["held_out_samples"]) == (report.reservoir_rows, report.held_out_samples)
    assert (data["dead_letters"], data["snapshots_rewritten"]) == (report.dead_letters, report.snapshots_rewritten)
    everything = b"".join([message.value or b"", *(value or b"" for _, value in message.headers)])
    assert EVE.encode() not in everything
    assert MARKS[EVE].tobytes() not in everything


def test_a_learner_goes_on_with_what_is_written_later(world: World) -> None:
    world.write(stream(200))
    world.learn()
    erase(world)
    told = len(world.dead_letters())
    world.write(stream(100, first=200))
    witness = Witness()
    report = world.learn(observer=witness)
    assert (witness.resumed, report.records) == (True, 100)
    assert not witness.warnings
    assert not any(step.batch.erased for step in witness.steps)
    assert files_with(world, EVE), "what is written after the erasure is ordinary"
    spoilt = [record for record in stream(100, first=200) if record.fate == "bad"]
    assert len(world.dead_letters()) - told == len(spoilt)
    assert len(world.events("subject_erased")) == 1


def test_a_fall_back_to_any_older_snapshot_replays_without_the_subject(world: World) -> None:
    records = stream(200)
    world.write(records)
    world.learn(snapshots={"keep": 10})
    erase(world)
    entries = world.store.entries()
    for entry in entries[1:]:
        shutil.rmtree(entry.path)
    start = sum(entries[0].offsets.values())
    witness = Witness()
    report = world.learn(observer=witness)
    assert report.records == 200 - start
    passed_by = [record.offset for step in witness.steps for record in step.batch.erased]
    assert passed_by == [n for n in range(start, 200) if n % 5 == 1]
    assert_erased(world)
    offsets = world.dead_offsets()
    assert sorted(set(offsets)) == [n for n, record in enumerate(records) if record.fate == "bad"], "all were told"
    assert len(offsets) == len(set(offsets)), "and none twice"


def test_replay_after_a_fall_back_is_the_same_every_time(world: World) -> None:
    world.write(stream(200))
    world.learn(snapshots={"keep": 10})
    erase(world)
    for entry in world.store.entries()[1:]:
        shutil.rmtree(entry.path)
    copies = []
    for number, cut in enumerate((None, 60)):
        copy = World(world.folder.with_name(f"copy {number}"), world.settings, world.log)
        shutil.copytree(world.folder, copy.folder)
        copy.commits.committed.update(world.commits.committed)
        if cut is not None:
            copy.learn(max_records=cut)
        copy.learn()
        copies.append(copy.newest().fingerprint())
    assert copies[0] == copies[1]


POINTS = [
    ("erase.claimed", 1),
    ("erase.caught_up", 1),
    ("snapshot.tensors_written", 1),
    ("snapshot.manifest_written", 1),
    ("rewrite.written", 1),
    ("rewrite.old_away", 1),
    ("rewrite.renamed", 1),
    ("erase.newest_rewritten", 1),
    ("rewrite.written", 2),
    ("rewrite.old_away", 2),
    ("rewrite.renamed", 2),
    ("erase.rewritten", 1),
    ("erase.rewritten", 2),
    ("erase.removed", 1),
    ("snapshot.manifest_written", 4),
    ("snapshot.renamed", 1),
    ("erase.written", 1),
    ("erase.told", 1),
]


@pytest.mark.parametrize("world", ["trained"], indirect=True)
@pytest.mark.parametrize("untold", [False, True], ids=["told", "untold"])
@pytest.mark.parametrize(("point", "number"), POINTS)
def test_killed_anywhere_and_run_again_it_is_finished(
    world: World, killed_at: Any, point: str, number: int, untold: bool
) -> None:
    records = stream(200)
    world.write(records)
    if untold:  # the learner was killed between its last snapshot and the commit of it
        with pytest.raises(Killed):
            world.learn(commit_log=KilledBeforeTelling(world.commit_log(), commits=3))
    else:
        world.learn()
    newest = world.newest().offsets
    killed_at(point, number)
    with pytest.raises(Killed):
        erase(world)
    fault_points.on_fault_point(None)
    assert world.whole_entries(), "a whole one is always there"
    erase(world)
    if not (untold and point == "erase.claimed"):  # there a learner too goes on from the one before
        assert world.newest().offsets == newest, "nothing learnt is lost"
    assert_erased(world)
    assert world.events("subject_erased")
    committed = world.commit_log().committed()
    assert committed is not None
    assert (committed.generation, committed.sequence) == world.newest_entry().number
    world.learn()
    assert_erased(world)
    offsets = world.dead_offsets()
    assert len(offsets) == len(set(offsets)), "nothing is told twice"
    bad = {n for n, record in enumerate(records) if record.fate == "bad"}
    assert bad - set(offsets) <= {n for n in bad if n % 5 == 1}, "only the subject's may be missing"


@pytest.mark.parametrize("world", ["trained"], indirect=True)
@pytest.mark.parametrize(("point", "number"), POINTS)
def test_killed_anywhere_a_learner_goes_on_all_the_same(world: World, killed_at: Any, point: str, number: int) -> None:
    world.write(stream(200))
    world.learn(max_records=170)
    killed_at(point, number)
    with pytest.raises(Killed):
        erase(world)
    fault_points.on_fault_point(None)
    world.learn()
    assert world.newest().offsets == {world.partition: 200}
    offsets = world.dead_offsets()
    assert len(offsets) == len(set(offsets))


@pytest.mark.parametrize("world", ["trained"], indirect=True)
@pytest.mark.parametrize("forgotten", [False, True], ids=["known", "forgotten"])
@pytest.mark.parametrize(("point", "number"), POINTS[POINTS.index(("erase.newest_rewritten", 1)) :])
def test_killed_between_the_newest_and_the_older_ones_a_learner_goes_on_without_the_subject(
    world: World, killed_at: Any, point: str, number: int, forgotten: bool
) -> None:
    """Also where the newest was written and not told, and where the brokers have forgotten what was committed."""
    world.write(stream(200))
    with pytest.raises(Killed):
        world.learn(commit_log=KilledBeforeTelling(world.commit_log(), commits=3))
    newest, entry = world.newest(), world.newest_entry()
    if forgotten:
        world.commits.committed.clear()
    killed_at(point, number)
    with pytest.raises(Killed):
        erase(world)
    fault_points.on_fault_point(None)
    witness = Witness()
    process = world.process(observer=witness)
    assert process.start()
    assert process.learner.records_consumed == newest.facts["records_consumed"], "nothing learnt is lost"
    run(process)
    assert witness.commits[-1].entry.number > entry.number
    assert not [name for name in files_with(world, EVE) if world.newest_entry().path.name in name]
    offsets = world.dead_offsets()
    assert len(offsets) == len(set(offsets)), "nothing is told twice"


def test_after_a_fall_back_below_a_replaced_learner_nothing_is_told_twice(world: World) -> None:
    """The newest is broken, and the one before, of a learner that had been replaced, has the committed sequence."""
    records = stream(200)
    world.write(records)
    world.learn(max_records=90)

    class IsReplaced(Witness):
        def stepped(self, learner: StreamLearner, report: StepReport) -> None:
            super().stepped(learner, report)
            if len(self.steps) == 2:
                world.learn(max_records=80, snapshots={"every_records": None})

    with pytest.raises(LearnerFenced):  # its snapshot is written, and not told
        world.learn(observer=IsReplaced())
    committed = world.commit_log().committed()
    assert committed is not None
    broken, before = world.store.entries()[-1], world.store.entries()[-2]
    assert (broken.sequence, before.sequence) == (committed.sequence, committed.sequence), "else the test shows nothing"
    (broken.path / "state.json").write_bytes(b"{}")
    erase(world)
    world.learn()
    offsets = world.dead_offsets()
    assert sorted(offsets) == [n for n, record in enumerate(records) if record.fate == "bad"]


def test_what_is_not_whole_and_what_was_left_half_written_go_too(world: World) -> None:
    world.write(stream(200))
    world.learn()
    entries = world.store.entries()
    raw = entries[1].path
    leftover = raw.with_name(".tmp-left")
    shutil.copytree(raw, leftover)
    no_manifest = raw.with_name("000001-0000000099")
    shutil.copytree(raw, no_manifest)
    (no_manifest / "manifest.json").unlink()
    with (entries[0].path / "state.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"12345")
    report = erase(world)
    assert_erased(world)
    assert report.snapshots_removed == 2
    assert report.snapshots_rewritten == len(entries) - 1
    assert not any(path.exists() for path in (leftover, no_manifest, entries[0].path))


def test_of_a_fall_back_that_was_not_learnt_past_nothing_is_told_twice(world: World) -> None:
    """The newest snapshot is broken: erased is from the one before, and the learner after it knows what was told."""
    records = stream(200)
    world.write(records)
    world.learn()
    (world.newest_entry().path / "state.json").write_bytes(b"{}")
    erase(world)
    assert_erased(world)
    world.learn()
    offsets = world.dead_offsets()
    assert sorted(offsets) == [n for n, record in enumerate(records) if record.fate == "bad"]
    classes = [json.loads(message.value or b"")["class"] for message in world.events("new_class")]
    assert sorted(classes) == ["a", "b", "c", "d"]


def test_a_snapshot_that_waited_to_be_told_is_told_without_the_subject(world: World) -> None:
    records = stream(200)
    world.write(records)
    with pytest.raises(Killed):
        world.learn(commit_log=KilledBeforeTelling(world.commit_log(), commits=3))
    told = set(world.dead_offsets())
    erase(world)
    (end,) = world.newest().offsets.values()
    bad = {n for n, record in enumerate(records[:end]) if record.fate == "bad"}
    assert any(n % 5 == 1 for n in bad - told), "else the test shows nothing"
    offsets = world.dead_offsets()
    assert len(offsets) == len(set(offsets))
    assert set(offsets) == told | {n for n in bad if n % 5 != 1}


def test_nothing_found_is_recorded_all_the_same(world: World) -> None:
    world.write(stream(100))
    world.learn()
    report = erase(world, "somebody else")
    assert (report.reservoir_rows, report.held_out_samples, report.dead_letters) == (0, 0, 0)
    assert len(world.events("subject_erased")) == 1
    erasures = world.newest().state["erasures"]
    assert isinstance(erasures, list)
    assert len(erasures) == 1


def test_erased_again_it_reaches_what_came_since(world: World) -> None:
    world.write(stream(100))
    world.learn()
    erase(world)
    world.write(stream(100, first=100))
    world.learn()
    assert files_with(world, EVE)
    erase(world)
    erase(world, "somebody else")
    assert_erased(world)
    erasures: Any = world.newest().state["erasures"]
    assert {entry["subject"]: entry["until"] for entry in erasures}[subject_hex(key(world))] == [
        [world.log.topic, 0, 200]
    ]
    assert len(world.events("subject_erased")) == 3


def test_a_learner_that_runs_elsewhere_on_this_state_can_commit_nothing_any_more(world: World) -> None:
    world.write(stream(100))
    world.learn()
    other = world.commit_log()
    other.start()
    erase(world)
    with pytest.raises(LearnerFenced):
        other.heartbeat()


def test_another_branch_tells_nothing(world: World) -> None:
    world.write(stream(100))
    world.learn(branch="side")
    facts = ProcessFacts(
        stream=STREAM, branch="side", topic=world.log.topic, cluster_id="cluster", topic_id="topic", state_id=""
    )
    erasure(world, facts=facts, commit_log=world.commit_log("side"), reports=None).erase(EVE)
    assert_erased(world)
    assert world.commits.messages == []
    world.write(stream(20, first=100))
    assert world.learn(branch="side").records == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stream": "faces"}, "holds the state of stream 'digits', not 'faces'"),
        ({"branch": "side"}, "holds the state of branch 'main', not 'side'"),
        ({"topic_id": "anew"}, "was learnt from another log .* --accept-gap"),
        ({"cluster_id": "elsewhere"}, "was learnt from another log"),
    ],
)
@pytest.mark.parametrize("world", ["trained"], indirect=True)
def test_what_is_refused_is_refused_before_anything_is_claimed_or_changed(
    world: World, change: dict[str, str], message: str
) -> None:
    world.write(stream(100))
    world.learn()
    facts = {"stream": STREAM, "branch": "main", "topic": world.log.topic, "cluster_id": "cluster"}
    epochs, numbers = dict(world.commits.epochs), [entry.sha256 for entry in world.store.entries()]
    refused = ProcessFacts(**{**facts, "topic_id": "topic", "state_id": "", **change})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        erasure(world, facts=refused).erase(EVE)
    assert world.commits.epochs == epochs
    assert [entry.sha256 for entry in world.store.entries()] == numbers


def test_an_empty_folder_is_refused(world: World) -> None:
    with pytest.raises(UserError, match="holds no whole snapshot to erase from"):
        erase(world)


@pytest.mark.parametrize("world", ["trained"], indirect=True)
def test_rows_of_which_nobody_knows_whose_they_are_need_a_word(world: World) -> None:
    world.write(stream(200))
    world.learn()
    for entry in world.store.entries():
        snapshot = world.store.load(entry)
        state: Any = snapshot.state
        for name in ("subjects", "holes"):
            del state["learner"]["reservoir"][name]
        del state["erasures"]
        world.store.rewrite(entry, snapshot)
    with pytest.raises(UserError, match=r"of 60 rows of the reservoir nobody knows whose they are.*--unknown-too"):
        erase(world)
    report = erase(world, unknown_too=True)
    assert report.newest_reservoir_rows == 60
    assert files_with(world, EVE) == []
    world.write(stream(20, first=200))
    assert world.learn().records == 20


def test_versions_find_a_rewritten_snapshot_by_its_former_name(world: World) -> None:
    world.write(stream(100))
    world.learn()
    names = [entry.sha256 for entry in world.store.entries()]
    erase(world)
    assert [entry.facts["former_sha256"] for entry in world.store.entries()] == [
        *([name] for name in names),
        names[-1:],
    ]
    assert not set(names) & {entry.sha256 for entry in world.store.entries()}


def test_what_restructurings_have_offered_goes_too(world: World) -> None:
    """It is a whole state, with raw samples; its job is to be done again."""
    world.write(stream(60))
    world.learn()
    newest = world.newest()
    world.offers.put("consolidation-1", "consolidation", newest, newest, {})
    (world.offers.folder / "consolidation-2").mkdir()
    erase(world)
    assert list(world.offers.folder.iterdir()) == []
