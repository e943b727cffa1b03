"""Whether a learner that goes back catches up in time: the sums by hand, what the log shows, and offers in memory."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, cast

import pytest

from consumers import learner_process
from consumers.catching_up import Pace, arrival_per_second, expected_seconds, why_not_caught_up
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.metrics import LearnerMetrics
from consumers.observers import Observers
from consumers.process_settings import MetricsSettings
from consumers.record_source import LogTruncated, RecordSource, SourceUnavailable
from consumers.way_back import WayBack, measure_way_back
from deploy.console import ConsoleObserver
from pipeline.record import Partition, Record
from pipeline.user_error import UserError
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import STREAM, Witness, World
from tests.consumers.test_adoption import JOB, OFTEN, offer

RECORDS = digit_stream(90)
HOUR = 3_600.0


def way(**changes: Any) -> WayBack:
    """6,000 records came in the last ten minutes, evenly, and are all learnt: 10 a second."""
    values = {
        "records_to_relearn": 6_000,
        "records_since": 6_000,
        "records_lately": 3_000,
        "age_seconds": 600.0,
        "has_odd_times": False,
        "retention_seconds": HOUR,
    }
    return WayBack(**cast(Any, values | changes))


def pace(per_second: float, records: int = 2_000) -> Pace:
    return Pace(records=records, seconds=records / per_second)


NEVER = "never be caught up with: 10.0 records/s arrive, this learner learns "
OVER = "and the oldest came 1.0 h ago: past the log's retention of 50.0 min"


@pytest.mark.parametrize(
    ("way_back", "learnt", "expected", "why"),
    [
        # 6,000 / (20 - 10) = 600 s; the oldest record is 600 s old and may be deleted in 3,000 s.
        pytest.param(way(), pace(20), 600, None, id="in time"),
        # Another 600 s are left, and needed.
        pytest.param(way(retention_seconds=1_200.0), pace(20), 600, None, id="just in time"),
        pytest.param(
            way(retention_seconds=1_100.0),
            pace(20),
            600,
            "6,000 records would be learnt again, at 20.0 records/s while 10.0/s arrive, which takes 10.0 min, "
            "and the log may delete the oldest in 8.3 min (its retention is 18.3 min)",
            id="too late",
        ),
        # 6,000 / (11 - 10) = 6,000 s, and 3,000 are left: without what arrives it would be 545.
        pytest.param(way(), pace(11), 6_000, "which takes 1.7 h", id="too late because of what arrives"),
        pytest.param(way(), pace(10), None, f"{NEVER}10.0, and the log keeps them for 1.0 h", id="no faster"),
        pytest.param(way(), pace(4), None, f"{NEVER}4.0, ", id="slower"),
        pytest.param(way(retention_seconds=None), pace(4), None, None, id="slower, but kept for ever"),
        # What waits to be learnt came too: 12,000 in 600 s. It is caught up with when as much waits as before.
        pytest.param(way(records_since=12_000, records_lately=6_000), pace(80), 100, None, id="a learner behind"),
        pytest.param(way(records_since=12_000, records_lately=6_000), pace(20), None, "20.0 records/s", id="lag"),
        # A replay: a million records were written at a stroke, and nothing has come since. 6,000 / 20 = 300 s.
        pytest.param(way(records_since=1_000_000, records_lately=0), pace(20), 300, None, id="written at a stroke"),
        # The same three days ago, into a log of a week: were it counted evenly, 3.9 would arrive a second.
        pytest.param(
            way(records_since=1_000_000, records_lately=0, age_seconds=72 * HOUR, retention_seconds=168 * HOUR),
            pace(3),
            2_000,
            None,
            id="written at a stroke long ago",
        ),
        # A burst at the end, after a lull: 3,000 / 300 s were the lately, 3,600 / 600 s = 6 is the lower one.
        pytest.param(way(records_since=3_600), pace(8), 3_000, None, id="a burst after a lull"),
        # 200 a second for half a minute say nothing about the next hour: 6,000 / 5 = 1,200 s.
        pytest.param(way(age_seconds=30.0), pace(5), 1_200, None, id="came a moment ago"),
        pytest.param(way(has_odd_times=True), pace(5), 1_200, None, id="nobody knows when they came"),
        pytest.param(way(has_odd_times=True), pace(1), 6_000, "at 1.0 records/s, which takes 1.7 h", id="slow anyhow"),
        pytest.param(way(age_seconds=None, has_odd_times=True), pace(0.1), 60_000, None, id="no time to be believed"),
        pytest.param(way(records_to_relearn=0, records_since=0), pace(1), None, None, id="nothing to be learnt again"),
        # The pace of a process that has just started is told, but refuses nothing.
        pytest.param(way(), pace(5, records=999), None, None, id="hardly started, slow"),
        pytest.param(way(), pace(11, records=999), 6_000, None, id="hardly started, late"),
        pytest.param(way(), Pace(records=0, seconds=0.0), None, None, id="nothing learnt yet"),
        pytest.param(way(), Pace(records=2_000, seconds=0.0), None, None, id="a clock that stands"),
        # Whatever the pace, what is past the retention is there by chance.
        pytest.param(way(age_seconds=HOUR, retention_seconds=3_000.0), pace(1e6), 0.006, OVER, id="past the retention"),
        pytest.param(
            way(age_seconds=HOUR, retention_seconds=3_000.0),
            Pace(records=0, seconds=0.0),
            None,
            OVER,
            id="past, no pace",
        ),
    ],
)
def test_the_sums(way_back: WayBack, learnt: Pace, expected: float | None, why: str | None) -> None:
    if way_back.records_to_relearn:
        assert expected_seconds(way_back, learnt) == (None if expected is None else pytest.approx(expected, rel=1e-3))
    told = why_not_caught_up(way_back, learnt)
    assert (told is None) == (why is None), told
    if told is not None and why is not None:
        assert why in told
        assert "let the job be done again" in told
        assert "\n" not in told


# -- what the log shows ------------------------------------------------------------------------------------------------

NOW = 1_780_000_000.0


def log_of(*ages_seconds: float | None, partitions: int = 1) -> InMemoryLog:
    """Records of these ages in turn over the partitions; None: a marker."""
    log = InMemoryLog("s.samples", partitions=partitions)
    for number, age in enumerate(ages_seconds):
        if age is None:
            log.append_marker(number % partitions)
        else:
            log.append(b"x", partition=number % partitions, timestamp_ms=round((NOW - age) * 1000))
    return log


def measure(log: InMemoryLog, begin: list[int], learnt: list[int], records: int) -> WayBack:
    return measure_way_back(
        InMemoryRecordSource(log),
        dict(zip(log.partitions, begin, strict=True)),
        dict(zip(log.partitions, learnt, strict=True)),
        records_to_relearn=records,
        retention_seconds=HOUR,
        now_seconds=NOW,
    )


def test_the_oldest_and_what_came_since() -> None:
    found = measure(log_of(900, 800, None, 600, 500, 200, 100), [2], [5], 2)
    # From offset 3 on: ages 600, 500 (learnt), 200, 100 (not learnt yet); two of these came in the last 300 s.
    assert found == WayBack(
        records_to_relearn=2,
        records_since=4,
        records_lately=2,
        age_seconds=600.0,
        has_odd_times=False,
        retention_seconds=HOUR,
    )
    assert arrival_per_second(found) == pytest.approx(4 / 600)


def test_of_several_partitions_the_oldest_counts_and_of_those_with_nothing_to_relearn_none() -> None:
    # Partition 0: ages 900, 400, 100; partition 1: 800, 300, 50.
    log = log_of(900, 800, 400, 300, 100, 50, partitions=2)
    found = measure(log, [1, 1], [3, 2], 3)
    assert (found.age_seconds, found.records_since, found.records_lately) == (400.0, 4, 2)
    found = measure(log, [3, 1], [3, 3], 2)
    assert (found.age_seconds, found.records_since, found.records_lately) == (300.0, 2, 1)
    found = measure(log, [3, 3], [3, 3], 0)
    assert (found.age_seconds, found.records_since, found.records_lately) == (None, 0, 0)


@pytest.mark.parametrize("age", [NOW, -86_400.0, NOW - NOW / 1000], ids=["0", "in the future", "seconds for ms"])
def test_times_that_cannot_be_are_not_believed(age: float) -> None:
    found = measure(log_of(age, 500), [0], [2], 2)
    assert (found.age_seconds, found.has_odd_times) == (None, True)
    found = measure(log_of(age, 500, partitions=2), [0, 0], [1, 1], 2)
    assert (found.age_seconds, found.has_odd_times) == (500.0, True)
    assert arrival_per_second(found) is None
    assert why_not_caught_up(found, pace(1)) is None


# -- offers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.adoption._LOOK_EVERY_SECONDS", 0.0)


def begun(folder: Path, retention_seconds: float | None, *, seconds_between: float = 10.0) -> World:
    """Has learnt 150 of a log whose records came one after another until now."""
    world = World(folder)
    world.log.retention_seconds = retention_seconds
    now = time.time()
    for number, record in enumerate(RECORDS):
        came = now - (len(RECORDS) - number) * seconds_between
        world.log.append(record.value, key=record.key, headers=record.headers, timestamp_ms=round(came * 1000))
    world.learn(max_records=150, snapshots=OFTEN)
    return world


def learns(monkeypatch: pytest.MonkeyPatch, per_second: float) -> None:
    """The process finds that it has learnt at this pace, whatever it did."""

    def measured(**_: Any) -> Pace:
        return pace(per_second)

    monkeypatch.setattr(learner_process, "Pace", measured)


def told(world: World, kind: str) -> dict[str, Any]:
    (event,) = world.events(kind)
    return cast("dict[str, Any]", json.loads(event.value or b""))


def test_an_offer_that_would_never_be_caught_up_with_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = begun(tmp_path, retention_seconds=24 * HOUR)
    learns(monkeypatch, 0.05)  # and 0.1 records/s arrive
    offer(world)
    metrics, witness = LearnerMetrics(MetricsSettings(), stream=STREAM, branch="main"), Witness()
    world.learn(observer=Observers([metrics, witness]), snapshots=OFTEN)
    why = told(world, "offer_refused")["why"]
    assert re.match(
        r"\d+ records would be learnt again and never be caught up with: 0\.(1|09\d) records/s arrive, this learner "
        r"learns 0\.05, and the log keeps them for 1\.0 d; ",
        why,
    )
    assert witness.warnings == [f"the offer of {JOB} was refused: {why}"]
    assert world.events("adopted") == []
    assert metrics.registry.get_sample_value("palimpsest_consolidations_total", {"outcome": "refused"}) == 1
    decisions = cast("list[dict[str, Any]]", world.newest().state["decisions"])
    (refusal,) = [decision for decision in decisions if decision["kind"] == "refusal"]
    assert (refusal["job"], refusal["why"]) == (JOB, why)
    assert world.newest().offsets == {world.partition: len(RECORDS)}, "it learns on to the log's end"


def test_an_offer_that_would_be_caught_up_with_too_late_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = begun(tmp_path, retention_seconds=(len(RECORDS) - 45) * 10 + 600)  # some ten minutes for some 100 records
    learns(monkeypatch, 0.2)  # and 0.1 records/s arrive: more than 16 minutes
    offer(world)
    world.learn(snapshots=OFTEN)
    assert re.search(
        r"at 0\.2 records/s while 0\.1/s arrive, which takes 1\d\.\d min, and the log may delete the oldest in "
        r"\d+\.\d min",
        told(world, "offer_refused")["why"],
    )


def test_with_ample_retention_it_is_adopted_and_says_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = begun(tmp_path, retention_seconds=7 * 24 * HOUR)
    learns(monkeypatch, 0.3)
    offer(world)
    metrics = LearnerMetrics(MetricsSettings(), stream=STREAM, branch="main")

    def left() -> float | None:
        return metrics.registry.get_sample_value("palimpsest_relearning_expected_seconds")

    assert left() == 0
    world.learn(observer=Observers([metrics, ConsoleObserver(as_json=True)]), snapshots=OFTEN)
    data = told(world, "adopted")
    # 0.3 a second are learnt and 0.1 arrive.
    assert data["expected_seconds"] == pytest.approx(data["records_to_relearn"] / 0.2, rel=0.2)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["event"] == "adopted"]
    assert line["expected_seconds"] == data["expected_seconds"]
    assert left() == pytest.approx(data["expected_seconds"], abs=60)


def test_the_console_says_it_to_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = begun(tmp_path, retention_seconds=None)
    process = world.process()
    process.start()
    console = ConsoleObserver(as_json=False)
    process.learner.high_water = process.learner.records_consumed + 1_234
    console.adopted(process.learner, "consolidation", 90.0)
    console.adopted(process.learner, "consolidation", None)
    first, second = capsys.readouterr().err.splitlines()
    network = process.learner.learner
    assert network is not None
    of = f"sub-modules: 1, parameters: {network.parameters_count:,}"
    said = f"consolidation adopted ({of}); 1,234 records are learnt once more"
    assert first.strip() == f"{said}, in about 1.5 min"
    assert second.strip() == said


def test_a_learner_that_is_slower_than_its_log_adopts_what_is_kept_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = begun(tmp_path, retention_seconds=None)
    learns(monkeypatch, 0.05)
    offer(world)
    metrics = LearnerMetrics(MetricsSettings(), stream=STREAM, branch="main")
    world.learn(observer=metrics, snapshots=OFTEN, max_records=10)
    assert told(world, "adopted")["expected_seconds"] is None
    found = metrics.registry.get_sample_value("palimpsest_relearning_expected_seconds")
    assert found is not None
    assert found != found, "not a number: nobody knows"
    world.learn(observer=metrics, snapshots=OFTEN)
    assert metrics.registry.get_sample_value("palimpsest_relearning_expected_seconds") == 0


class ToldNothing(InMemoryRecordSource):
    """A source whose user may not see the topic's settings."""

    def retention_seconds(self) -> float | None:
        raise UserError("the brokers do not allow this user DescribeConfigs")


def test_whoever_may_not_see_the_retention_adopts_and_is_warned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = begun(tmp_path, retention_seconds=1.0)
    learns(monkeypatch, 0.05)
    offer(world, lambda state: {name: value for name, value in state.items() if name != "recent_ids"})
    offer(world, job="consolidation-2")
    witness = Witness()
    source: RecordSource = ToldNothing(world.log)
    world.learn(observer=witness, source=source, snapshots=OFTEN)
    assert told(world, "offer_refused")["why"] == "its state cannot be loaded: KeyError: 'recent_ids'"
    assert told(world, "adopted")["job"] == "consolidation-2"
    assert [warning for warning in witness.warnings if "DescribeConfigs" in warning] == [
        "whether the log keeps its records until an adoption is caught up with is not known: "
        "the brokers do not allow this user DescribeConfigs"
    ]


class BrokersAwayOnce(InMemoryRecordSource):
    """They do not answer the first time that they are asked how long they keep a record."""

    asked = 0

    def retention_seconds(self) -> float | None:
        self.asked += 1
        if self.asked == 1:
            raise SourceUnavailable("the brokers do not answer")
        return super().retention_seconds()


def test_an_offer_waits_for_brokers_that_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.adoption._RETRY_SECONDS", 0.0)
    world = begun(tmp_path, retention_seconds=7 * 24 * HOUR)
    offer(world)
    witness, source = Witness(), BrokersAwayOnce(world.log)
    world.learn(observer=witness, source=source, snapshots=OFTEN)
    assert witness.warnings == [f"the offer of {JOB} waits for the brokers: the brokers do not answer"]
    assert told(world, "adopted")["job"] == JOB
    assert source.asked == 2, "once for each look at the offer, not at every poll"


class DeletedMeanwhile(InMemoryRecordSource):
    """Retention is quicker than the second look."""

    def read_next(self, partition: Partition, offset: int) -> Record | None:
        raise LogTruncated(f"{partition} offset {offset} is gone")


def test_what_is_deleted_between_two_looks_is_refused(tmp_path: Path) -> None:
    world = begun(tmp_path, retention_seconds=7 * 24 * HOUR)
    offer(world)
    world.learn(source=DeletedMeanwhile(world.log), snapshots=OFTEN)
    assert re.fullmatch(
        r"the log cannot be learnt again from there: digits\.samples-0 offset \d+ is gone",
        told(world, "offer_refused")["why"],
    )
    assert world.newest().offsets == {world.partition: len(RECORDS)}
