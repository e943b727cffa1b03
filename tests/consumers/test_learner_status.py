"""GET /status beside what the learner did: the same figures, null for what nobody knows, and nobody waits."""

from __future__ import annotations

import json
import math
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from consumers import learner_status
from consumers.learner_status import LearnerStatus
from consumers.metrics_server import MetricsServer
from consumers.observers import Observer, Observers
from consumers.process_settings import SnapshotSettings
from consumers.status_answer import StatusAnswer
from model_store.snapshot import Snapshot
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.evaluation.forgetting import ClassEvaluation, EvaluationReport
from pipeline.record import Partition
from pipeline.stream_learner import StepReport, StreamLearner
from tests.consumers.digit_records import digit_stream, of_fate
from tests.consumers.learner_world import Witness, World, run

RECORDS = digit_stream(90)
DEADLINE_SECONDS = 60.0


class Clock:
    """time.monotonic and time.time, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Ticking(Observer):
    """A step takes a second. Stands before the status, which hears of the step at its end."""

    def __init__(self, clock: Clock, *, seconds: float = 1.0) -> None:
        self._clock, self._seconds = clock, seconds

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        self._clock.now += self._seconds


class Listening(Observer):
    """Asks after every step."""

    def __init__(self, status: LearnerStatus) -> None:
        self._status = status
        self.answers: list[StatusAnswer] = []

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        self.answers.append(self._status.answer())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(learner_status, "time", clock)
    return clock


def new_status(**snapshots: Any) -> LearnerStatus:
    return LearnerStatus(SnapshotSettings.model_validate(snapshots), stream="digits", branch="main", device="cpu")


def world_of(folder: Path, records: int = len(RECORDS)) -> World:
    world = World(folder)
    world.write(RECORDS[:records])
    return world


def asked(status: LearnerStatus) -> tuple[Mapping[str, str], dict[str, Any]]:
    """Headers and body, by HTTP; a body with NaN in it raises."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    server = MetricsServer(
        registry=CollectorRegistry(),
        host="127.0.0.1",
        port=0,
        last_turn=time.monotonic,
        ready=lambda: True,
        stale_after_seconds=100.0,
        routes=status.routes,
    )
    with server, urllib.request.urlopen(f"{server.url}/status", timeout=10) as answer:
        return answer.headers, json.loads(answer.read(), parse_constant=refuse)


def test_before_the_start_it_says_so_and_nothing_else_is_known() -> None:
    headers, answer = asked(new_status())
    assert (headers["Content-Type"], headers["Cache-Control"]) == ("application/json", "no-store")
    known = {name: value for name, value in answer.items() if value is not None}
    assert 0 <= known.pop("time") - known.pop("started_at") < 60
    assert known.pop("palimpsest")
    assert known == {
        "stream": "digits",
        "branch": "main",
        "state": "starting",
        "device": "cpu",
        "relearning_records": 0,
        "dead_letters": 0,
        "registrations_waiting": 0,
    }


def test_the_figures_are_those_of_the_run(tmp_path: Path) -> None:
    world, status, witness = world_of(tmp_path), new_status(), Witness()
    status.watch_registrations(lambda: 2)
    process = world.process(observer=Observers([status, witness]))
    process.start()
    process.run(stop=threading.Event(), until_idle_seconds=0.0)
    status.registered("3", "run")
    learner, evaluation, commit = process.learner, witness.evaluations[-1], witness.commits[-1]
    _, answer = asked(status)
    assert learner.learner is not None
    worst = next(entry for entry in evaluation.classes if entry.name == evaluation.worst_class)
    expected = {
        "records_consumed": len(RECORDS),
        "lag_records": 0,
        "classes": 6,
        "prequential_accuracy": learner.prequential.accuracy,
        "average_accuracy": evaluation.average_accuracy,
        "average_forgetting": evaluation.average_forgetting,
        "backward_transfer": evaluation.backward_transfer,
        "worst_class": {
            "name": worst.name,
            "accuracy": worst.accuracy,
            "forgetting": worst.forgetting,
            "n": worst.n,
        },
        "evaluated_at_records": evaluation.at_records,
        "snapshot": {
            "generation": commit.entry.generation,
            "sequence": commit.entry.sequence,
            "time": commit.entry.manifest.written.timestamp(),
        },
        "next_snapshot_seconds": None,  # all is in the newest
        "network": {
            "parameters": learner.learner.parameters_count,
            "sub_modules": learner.learner.sub_modules_count,
        },
        "relearning_records": 0,
        "relearning_seconds": None,
        "registered_version": {"version": "3", "run_id": "run"},
        "dead_letters": len(of_fate(RECORDS, "bad")),
        "registrations_waiting": 2,
    }
    assert {name: answer[name] for name in expected} == expected
    times = [step.batch.newest_event_time_seconds for step in witness.steps]
    newest = [moment for moment in times if moment is not None][-1]
    assert answer["event_lag_seconds"] == pytest.approx(time.time() - newest, abs=60)
    assert answer["records_per_second"] > 0


def test_a_disk_that_does_not_say_what_waits_hides_nothing_else() -> None:
    def broken() -> int:
        raise OSError("Stale file handle")

    status = new_status()
    status.watch_registrations(broken)
    _, answer = asked(status)
    assert (answer["stream"], answer["registrations_waiting"]) == ("digits", None)


def test_a_learner_that_goes_on_knows_its_snapshot_and_its_last_evaluation(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    world.learn()
    status = new_status()
    process = world.process(observer=status)
    process.start()
    assert process.resumed_from is not None
    status.resumed_from(process.resumed_from)
    answer, newest = status.answer(), process.learner.forgetting.newest_report()
    assert newest is not None
    assert (answer.state, answer.records_consumed, answer.classes) == ("learning", len(RECORDS), 6)
    assert answer.average_accuracy == newest.average_accuracy
    assert answer.evaluated_at_records == newest.at_records
    assert answer.snapshot is not None
    assert (answer.snapshot.generation, answer.snapshot.sequence) == world.newest_entry().number
    assert (answer.next_snapshot_seconds, answer.dead_letters) == (None, 0)


def test_the_rate_is_that_of_the_last_ten_seconds_and_ends_with_them(tmp_path: Path, clock: Clock) -> None:
    world, status = world_of(tmp_path), new_status()
    listening = Listening(status)
    world.learn(observer=Observers([Ticking(clock), status, listening]))
    records = [answer.records_consumed or 0 for answer in listening.answers]
    rates = [answer.records_per_second for answer in listening.answers]
    assert rates[0] == records[0], "a step a second"
    assert rates[5] == pytest.approx(records[5] / 6)
    assert rates[20] == pytest.approx((records[20] - records[10]) / 10)
    clock.now += 5.0
    assert status.answer().records_per_second == pytest.approx((records[-1] - records[-6]) / 10)
    clock.now += 5.0
    assert status.answer().records_per_second == 0.0


def test_the_next_snapshot_comes_by_time_or_by_records(tmp_path: Path, clock: Clock) -> None:
    world, by_time, by_records = world_of(tmp_path), new_status(), new_status(every_records=120)
    heard = [Listening(by_time), Listening(by_records)]
    snapshots = {"every_records": None}
    world.learn(observer=Observers([Ticking(clock), by_time, by_records, *heard]), snapshots=snapshots, max_records=100)
    steps = [answer.next_snapshot_seconds for answer in heard[0].answers]
    assert steps == [30.0 - step for step in range(1, len(steps) + 1)]
    for answer, left in zip(heard[1].answers, steps, strict=True):
        rate, learnt = answer.records_per_second, answer.records_consumed
        assert rate is not None
        assert learnt is not None
        assert left is not None
        assert answer.next_snapshot_seconds == pytest.approx(min(left, (120 - learnt) / rate))
    assert heard[1].answers[-1].next_snapshot_seconds != steps[-1], "by records"
    assert by_time.answer().next_snapshot_seconds is None, "the last commit has it all"


def test_a_snapshot_that_is_due_is_due_at_once(tmp_path: Path, clock: Clock) -> None:
    world, status = world_of(tmp_path), new_status(every_seconds=1.5)
    heard = Listening(status)
    world.learn(observer=Observers([Ticking(clock), status, heard]), snapshots={"every_records": None}, max_records=60)
    assert [answer.next_snapshot_seconds for answer in heard.answers][:3] == [0.5, 0.0, 0.0]


def test_idle_is_what_the_loop_has_seen_and_no_long_step(tmp_path: Path, clock: Clock) -> None:
    world, status = world_of(tmp_path, 30), new_status()
    world.learn(observer=status)
    clock.now += 60.0
    assert status.answer().state == "learning", "an update that takes a minute"
    status.turned({})
    assert status.answer().state == "learning", "it waits for the brokers to take a commit"
    status.turned({world.partition: 0})
    assert status.answer().state == "idle"
    assert status.answer().lag_records == 0


def test_brokers_that_do_not_answer_are_no_idleness_and_say_no_lag(tmp_path: Path, clock: Clock) -> None:
    world, status = world_of(tmp_path, 30), new_status()
    world.learn(observer=status)
    status.turned({world.partition: 0}, away_seconds=3.0)
    assert (status.answer().state, status.answer().lag_records) == ("away", None)
    clock.now += 60.0
    status.turned({world.partition: 5})
    assert (status.answer().state, status.answer().lag_records) == ("learning", 5)


def test_idle_is_when_all_that_came_is_learnt(tmp_path: Path, clock: Clock) -> None:
    world, status = world_of(tmp_path, 30), new_status()
    process = world.process(observer=status)
    process.start()
    learner = process.learner

    def states() -> list[str]:
        """After a long lull, while records are still to be read, and when none are."""
        clock.now += 60.0
        answers = []
        for lag in (5, 0):
            status.turned({world.partition: lag})
            answers.append(str(status.answer().state))
        return answers

    run(process)
    assert states() == ["learning", "idle"]
    world.write(RECORDS[30:31])
    record = world.log.at(world.partition, 30)
    assert record is not None
    assert not learner.add(RecordDecoder(learner.settings.input).decode(record))
    assert states() == ["learning", "learning"], "less than a batch waits for the idle flush"
    report = learner.flush()
    assert report is not None
    status.stepped(learner, report)
    assert states() == ["learning", "idle"]


def test_steps_that_take_longer_than_the_rate_looks_back_have_one_too(tmp_path: Path, clock: Clock) -> None:
    world, status = world_of(tmp_path), new_status()
    listening = Listening(status)
    slow = Ticking(clock, seconds=15.0)
    world.learn(observer=Observers([slow, status, listening]), max_records=60)
    records = [answer.records_consumed or 0 for answer in listening.answers]
    rates = [answer.records_per_second for answer in listening.answers]
    assert rates[3] == pytest.approx((records[3] - records[2]) / 15)
    clock.now += 14.0
    assert status.answer().records_per_second, "the next step is under way"
    clock.now += 60.0
    assert status.answer().records_per_second == 0.0


def test_what_is_learnt_once_more_is_said_with_the_time_it_takes(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.adoption._LOOK_EVERY_SECONDS", 0.0)
    world = world_of(tmp_path)
    world.learn(max_records=150, snapshots={"every_records": 45, "keep": 50})
    parent = world.store.load(world.store.entries()[0])
    result = Snapshot(generation=0, sequence=0, state=parent.state, offsets=parent.offsets, facts=parent.facts)
    world.offers.put("consolidation-1", "consolidation", parent, result, {})
    status, heard_at_adoption = new_status(), list[StatusAnswer]()
    heard = Listening(status)

    class Adopting(Observer):
        def adopted(self, learner: StreamLearner, kind: str, expected_seconds: float | None) -> None:
            heard_at_adoption.append(status.answer())
            status.adopted(learner, kind, 7.5)  # a pace to tell it by is not known after so few records
            heard_at_adoption.append(status.answer())

    world.learn(observer=Observers([Ticking(clock), status, Adopting(), heard]))
    unknown, known = heard_at_adoption
    assert (unknown.state, unknown.relearning_seconds, known.relearning_seconds) == ("relearning", None, 7.5)
    assert unknown.records_consumed == parent.state["records_consumed"]
    assert unknown.records_consumed is not None
    high_water = unknown.records_consumed + unknown.relearning_records
    assert high_water >= 150
    states = [answer.state for answer in heard.answers]
    again = states.count("relearning")
    assert states == ["relearning"] * again + ["learning"] * (len(states) - again)
    assert 0 < again < len(states)
    assert [answer.relearning_seconds for answer in heard.answers[:3]] == [6.5, 5.5, 4.5]
    assert heard.answers[-1].relearning_records == 0
    assert heard.answers[-1].relearning_seconds is None
    # what was told on the first pass is not counted once more
    assert heard.answers[-1].dead_letters == len(of_fate(RECORDS[high_water:], "bad"))


def test_it_answers_while_a_step_hangs(tmp_path: Path) -> None:
    """Nothing that is asked may wait for the learning, nor the learning for it."""
    world, status = world_of(tmp_path, 60), new_status()
    in_step, go_on = threading.Event(), threading.Event()

    class Hanging(Observer):
        def stepped(self, learner: StreamLearner, report: StepReport) -> None:
            in_step.set()
            assert go_on.wait(DEADLINE_SECONDS)

    thread = threading.Thread(target=lambda: world.learn(observer=Observers([status, Hanging()])))
    thread.start()
    try:
        assert in_step.wait(DEADLINE_SECONDS)
        _, answer = asked(status)
        assert 0 < answer["records_consumed"] < 60
    finally:
        go_on.set()
        thread.join(DEADLINE_SECONDS)
    assert status.answer().records_consumed == 60


def test_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    """A diverging network may say NaN of itself; JSON has no word for it."""
    nan = math.nan
    entry = ClassEvaluation(
        name="köln \u2028 \x1b[31m 京",
        accuracy=0.5,
        n=20,
        standard_error=0.1,
        best=0.75,
        forgetting=0.25,
        at_burst_end=None,
        in_averages=True,
        at_records=10,
    )
    report = EvaluationReport(
        at_records=10,
        classes=(entry,),
        average_accuracy=nan,
        average_forgetting=math.inf,
        backward_transfer=None,
        worst_class=entry.name,
        known_classes=1,
    )
    status = new_status()
    status.evaluated(World(tmp_path).process().learner, report)
    _, answer = asked(status)
    assert [answer[name] for name in ("average_accuracy", "average_forgetting", "backward_transfer")] == [None] * 3
    assert answer["worst_class"] == {"name": entry.name, "accuracy": 0.5, "forgetting": 0.25, "n": 20}
    with pytest.raises(ValidationError, match="finite"):
        StatusAnswer.model_validate({**answer, "average_accuracy": nan})
    status.evaluated(World(tmp_path).process().learner, replace(report, worst_class=None))
    assert status.answer().worst_class is None


def test_an_answer_of_a_later_release_can_be_read() -> None:
    _, answer = asked(new_status())
    later = {**answer, "worst_class": {"name": "a", "accuracy": 1, "forgetting": 0, "n": 5, "age": 3}, "novel": [1]}
    read = StatusAnswer.model_validate_json(json.dumps(later))
    assert read.worst_class is not None
    assert (read.stream, read.worst_class.name) == ("digits", "a")


def test_partitions_are_summed() -> None:
    status = new_status()
    status.turned({Partition("digits.samples", 0): 12_000, Partition("digits.samples", 1): 345})
    assert status.answer().lag_records == 12_345
