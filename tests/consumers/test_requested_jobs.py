"""What a learner asks for: told once, with the snapshots that the job needs, until it is answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from consumers.base_snapshots import class_names
from consumers.commit_thread import CommitThread
from consumers.metrics import LearnerMetrics
from consumers.observers import Observer
from consumers.process_settings import MetricsSettings
from consumers.requested_jobs import RequestedJob, request_facts, requested_job
from model_store.snapshot import Snapshot
from pipeline.restructuring.trigger import Kind
from pipeline.state import Json
from pipeline.stream_learner import StepReport, StreamLearner
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import (
    STREAM,
    CommitLogThatCalls,
    FullDisk,
    Killed,
    KilledAfterSteps,
    KilledBeforeTelling,
    Witness,
    World,
    learner_settings,
    run,
)

# No snapshot but those that somebody wants, the last one, and where a test says how often.
SELDOM: dict[str, Any] = {"every_records": 100_000, "keep": 50}
JOB = "consolidation-9"


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.adoption._LOOK_EVERY_SECONDS", 0.0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three steps of two digits, 90 records each. Two new classes, once they have settled, are a reason."""
    world = World(tmp_path, settings=learner_settings(restructuring=restructuring()))
    world.write(digit_stream(90, clean=True))
    return world


def restructuring(**changes: Any) -> dict[str, Any]:
    return {"new_classes": 2, "settle_records": 40, "rest_records": 60, "expand_below": None, **changes}


def asked(world: World) -> RequestedJob:
    job = requested_job(world.store.entries())
    assert job is not None
    return job


def requests(world: World) -> list[dict[str, Any]]:
    return [json.loads(message.value or b"") for message in world.events("restructuring_requested")]


def answer_with_itself(world: World) -> None:
    """A job that changes nothing."""
    job = asked(world)
    parent = world.store.load(job.parent)
    result = Snapshot(generation=0, sequence=0, state=parent.state, offsets=parent.offsets, facts=parent.facts)
    world.offers.put(JOB, "consolidation", parent, result, request_facts(job.parent, job.kind))


def test_new_classes_that_have_settled_are_a_request_with_both_snapshots(world: World) -> None:
    world.learn(max_records=170, snapshots=SELDOM)
    (told,) = requests(world)
    assert told["reason"] == "new_classes"
    assert sorted(told["new_classes"]) == ["2", "3"]
    job = asked(world)
    assert job.reason == "new_classes"
    assert job.at_records == told["records_consumed"] == job.parent.facts["records_consumed"]
    assert sorted(class_names(job.parent)) == ["0", "1", "2", "3"]
    assert job.base is not None
    assert sorted(class_names(job.base)) == ["0", "1"]
    assert cast(int, job.base.facts["records_consumed"]) <= told["base_at_records"] <= 100


def test_one_at_a_time_and_what_it_needs_is_kept_until_it_is_answered(world: World) -> None:
    few: dict[str, Any] = {"every_records": 10, "keep": 2, "keep_bases": 0}
    world.learn(max_records=170, snapshots=few)
    job = asked(world)
    world.learn(snapshots=few)
    assert asked(world) == job, "classes 4 and 5 have come and settled since"
    assert len(requests(world)) == 1
    assert len(world.store.entries()) == 4, "the two newest and these"
    world.offers.refuse(JOB, "consolidation", "no reason", request_facts(job.parent, job.kind))
    world.write(digit_stream(10, clean=True, seed=3))
    world.learn(snapshots=few)
    assert requested_job(world.store.entries()) is None
    assert job.parent.number not in [entry.number for entry in world.store.entries()]
    assert job.base in world.store.entries(), "the same base stands"


def test_a_refusal_is_told_once_and_after_a_rest_it_asks_again(world: World) -> None:
    world.learn(max_records=170, snapshots=SELDOM)
    said: dict[str, Json] = {**request_facts(asked(world).parent, Kind.CONSOLIDATION), "new_classes": ["2", "3"]}
    world.offers.refuse(JOB, "consolidation", "5 unlabelled rows are too few", said)
    witness = Witness()
    world.learn(observer=witness, snapshots=SELDOM)
    assert witness.warnings == [f"{JOB} was refused: 5 unlabelled rows are too few"]
    (told,) = world.events("restructuring_refused")
    data = json.loads(told.value or b"")
    assert (data["job"], data["kind"], data["why"]) == (JOB, "consolidation", "5 unlabelled rows are too few")
    first, second = requests(world)
    assert second["records_consumed"] - data["records_consumed"] >= 60
    assert sorted(second["new_classes"]) == ["2", "3", "4", "5"]
    assert second["base_at_records"] == first["base_at_records"]
    world.learn(snapshots=SELDOM)
    assert len(world.events("restructuring_refused")) == 1
    assert world.offers.answers() == [], "two snapshots know of it"


def test_a_lost_base_ends_what_can_only_be_refused_again(world: World) -> None:
    world.learn(max_records=170, snapshots=SELDOM)
    facts = {**request_facts(asked(world).parent, Kind.CONSOLIDATION), "base_is_lost": True}
    world.offers.refuse(JOB, "consolidation", "the old teacher is lost", facts)
    world.learn(snapshots=SELDOM)
    _, second = requests(world)
    assert sorted(second["new_classes"]) == ["4", "5"]


def test_an_adoption_is_the_base_of_the_next_request(world: World) -> None:
    world.learn(max_records=170, snapshots=SELDOM)
    answer_with_itself(world)
    parent = asked(world).parent
    world.learn(snapshots=SELDOM)
    assert len(world.events("adopted")) == 1
    first, second = requests(world)
    assert sorted(second["new_classes"]) == ["4", "5"]
    assert second["records_consumed"] > 170, "not while it learnt once more"
    job = asked(world)
    assert job.base is not None
    assert sorted(class_names(job.base)) == ["0", "1", "2", "3"]
    assert cast(int, job.base.facts["records_consumed"]) >= cast(int, parent.facts["records_consumed"])
    assert first["reason"] == second["reason"] == "new_classes"


def test_the_adopted_snapshot_is_kept_while_classes_that_came_meanwhile_are_learnt_once_more(world: World) -> None:
    """It is the base of what comes next, though the newest snapshot knows no more than it does."""
    few: dict[str, Any] = {"every_records": 10, "keep": 2, "keep_bases": 0}
    world.learn(max_records=170, snapshots=few)
    world.learn(max_records=60, snapshots=few)  # classes 4 and 5 come
    answer_with_itself(world)
    world.learn(snapshots=few)
    _, second = requests(world)
    assert sorted(second["new_classes"]) == ["4", "5"]
    job = asked(world)
    assert job.base is not None
    assert sorted(class_names(job.base)) == ["0", "1", "2", "3"]


def test_a_refusal_on_a_full_disk_ends_nobody(world: World) -> None:
    world.learn(max_records=170, snapshots=SELDOM)
    world.offers.refuse(JOB, "consolidation", "no reason", request_facts(asked(world).parent, Kind.CONSOLIDATION))
    disk = FullDisk(world.folder / "snapshots")
    process = world.process(store=disk, snapshots=SELDOM)
    process.start()
    with pytest.raises(OSError, match="No space left"):
        run(process)  # at its end there is no next try
    assert process.learner.records_consumed == 270, "it has learnt on"
    world.learn(snapshots=SELDOM)
    assert len(world.events("restructuring_refused")) == 1


def test_an_offer_that_the_learner_refuses_answers_the_request(world: World) -> None:
    world.learn(max_records=170, snapshots=SELDOM)
    parent = world.store.load(asked(world).parent)
    spoilt = Snapshot(
        generation=0,
        sequence=0,
        state=parent.state,
        offsets=parent.offsets,
        facts={**parent.facts, "state_id": "another"},
    )
    world.offers.put(JOB, "consolidation", parent, spoilt, request_facts(asked(world).parent, Kind.CONSOLIDATION))
    world.learn(max_records=10, snapshots=SELDOM)
    assert len(world.events("offer_refused")) == 1
    assert requested_job(world.store.entries()) is None


def test_what_was_made_by_hand_of_another_kind_answers_nothing(world: World) -> None:
    """It begins with the very parent of the request, and says why nothing comes of it."""
    world.learn(max_records=170, snapshots=SELDOM)
    job = asked(world)
    assert job.kind is Kind.CONSOLIDATION
    said = request_facts(job.parent, Kind.EXPANSION)
    assert said == {}
    world.offers.refuse(f"expansion-{job.parent.sequence}", "expansion", "by hand", said)
    world.learn(max_records=10, snapshots=SELDOM)
    assert asked(world) == job
    assert json.loads(world.events("restructuring_refused")[0].value or b"")["kind"] == "expansion"


def test_an_expansion_is_asked_for_as_such_until_it_is_answered(tmp_path: Path) -> None:
    settings = learner_settings(restructuring=restructuring(expand_below=1.0))
    world = World(tmp_path, settings=settings)
    world.write(digit_stream(90, clean=True))
    world.learn(snapshots=SELDOM)
    (told,) = requests(world)
    assert told["kind"] == "expansion"
    job = asked(world)
    assert job.kind is Kind.EXPANSION
    world.learn(snapshots=SELDOM)
    assert asked(world) == job, "a learner that was loaded asks for the same"
    world.offers.refuse(JOB, "expansion", "no reason", request_facts(job.parent, job.kind))
    world.write(digit_stream(5, clean=True, seed=3))
    world.learn(snapshots=SELDOM)
    assert requested_job(world.store.entries()) is None


def test_a_manifest_from_before_there_were_expansions_asks_for_a_consolidation(world: World) -> None:
    world.learn(max_records=170, snapshots=SELDOM)
    (entry,) = world.store.entries()[-1:]
    restructuring_facts = cast("dict[str, Any]", entry.facts["restructuring"])
    del restructuring_facts["request"]["kind"]
    job = requested_job([entry])
    assert job is not None
    assert job.kind is Kind.CONSOLIDATION


def test_the_parent_of_a_request_stays_the_same_where_a_later_release_says_more_of_it(world: World) -> None:
    world.learn(max_records=170, snapshots=SELDOM)
    parent = asked(world).parent
    world.learn(max_records=10, snapshots=SELDOM)
    entries = world.store.entries()
    assert len([entry for entry in entries if cast("dict[str, Any]", entry.facts["restructuring"])["request"]]) > 1
    for entry in entries:
        request = cast("dict[str, Any]", entry.facts["restructuring"])["request"]
        if entry.number == parent.number:
            del request["kind"]
    job = requested_job(entries)
    assert job is not None
    assert job.parent.number == parent.number


def test_a_refusal_that_answers_no_request_leaves_it(world: World) -> None:
    world.learn(max_records=170, snapshots=SELDOM)
    world.offers.refuse(JOB, "consolidation", "by hand", {})
    world.learn(max_records=10, snapshots=SELDOM)
    assert asked(world).reason == "new_classes"


@pytest.mark.parametrize("kill", ["step 11", "step 12", "step 13", "step 14", "commit 1", "commit 2", "commit 3"])
def test_a_kill_anywhere_asks_once_and_for_the_same(world: World, tmp_path: Path, kill: str) -> None:
    undisturbed = World(tmp_path / "undisturbed", settings=world.settings)
    undisturbed.write(digit_stream(90, clean=True))
    undisturbed.learn(max_records=170, snapshots=SELDOM)
    what, _, number = kill.partition(" ")
    disturbances: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: {"observer": KilledAfterSteps(int(number))},
        "commit": lambda: {"commit_log": KilledBeforeTelling(world.commit_log(), commits=int(number))},
    }
    with pytest.raises(Killed):
        world.learn(max_records=170, snapshots=SELDOM, **disturbances[what]())
    done = cast(int, world.newest().state["records_consumed"]) if world.store.entries() else 0
    world.learn(max_records=170 - done, snapshots=SELDOM)
    assert requests(world) == [{**told, "stream": STREAM} for told in requests(undisturbed)]
    assert asked(world).at_records == asked(undisturbed).at_records


def test_a_commit_that_takes_long_makes_the_parent_a_later_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning does not wait for ever: the first snapshot that can be taken stands in for that of the moment."""
    monkeypatch.setattr("consumers.checkpointing._WANTED_SNAPSHOT_SECONDS", 0.0)
    goes_on = threading.Event()
    asked_at: list[int] = []

    class LetsGo(Observer):
        """The commit before the request hangs until the learner is past it."""

        def stepped(self, learner: StreamLearner, report: StepReport) -> None:
            if report.request is not None:
                asked_at.append(report.records_consumed)
            if asked_at and report.records_consumed >= asked_at[0] + 20:
                goes_on.set()

    def hangs() -> None:
        assert goes_on.wait(30)

    world.learn(
        max_records=190,
        snapshots={"every_records": 40, "keep": 50},
        commits=CommitThread(),
        commit_log=CommitLogThatCalls(world.commit_log(), hangs),
        observer=LetsGo(),
    )
    job = asked(world)
    assert [job.at_records] == asked_at
    assert cast(int, job.parent.facts["records_consumed"]) > job.at_records
    assert request_facts(job.parent, job.kind)["requested_at"] == job.at_records


def test_settings_that_ask_for_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, settings=learner_settings(restructuring=restructuring(new_classes=None)))
    world.write(digit_stream(90, clean=True))
    world.learn(snapshots=SELDOM)
    assert requests(world) == []
    assert requested_job(world.store.entries()) is None


def test_requests_are_counted_by_kind_and_reason(world: World) -> None:
    metrics = LearnerMetrics(MetricsSettings(), stream=STREAM, branch="main")
    world.learn(observer=metrics, max_records=170, snapshots=SELDOM)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }
    assert found[("palimpsest_restructurings_requested_total", "consolidation", "new_classes")] == 1
    assert found[("palimpsest_restructurings_requested_total", "consolidation", "drift")] == 0
    assert found[("palimpsest_restructurings_requested_total", "expansion", "new_classes")] == 0
    assert found[("palimpsest_restructuring_waiting", "consolidation")] == 1
    assert found[("palimpsest_restructuring_waiting", "expansion")] == 0


def test_an_observer_hears_of_a_refusal(world: World) -> None:
    heard: list[str] = []

    class Hears(Observer):
        def refused(self, kind: str) -> None:
            heard.append(kind)

    world.learn(max_records=170, snapshots=SELDOM)
    world.offers.refuse(JOB, "consolidation", "no reason", request_facts(asked(world).parent, Kind.CONSOLIDATION))
    world.learn(observer=Hears(), snapshots=SELDOM)
    assert heard == ["consolidation"]
