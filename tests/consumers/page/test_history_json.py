"""What /history says is what the learner's own history says."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from consumers.page.baseline import Baseline, BaselineLook
from consumers.page.event_log import EventLines, EventLog
from consumers.page.history_json import history_json
from consumers.page.standing import Standing
from consumers.page.told_event import event_of
from consumers.state_standing import newest_standing, standing_at
from pipeline.evaluation.forgetting import ForgettingHistory
from pipeline.settings import LearnerSettings
from pipeline.state import Json
from pipeline.stream_learner import StreamLearner
from pipeline.user_error import UserError
from tests.consumers.learner_world import STREAM, World
from tests.consumers.page.learnt_digits import learnt


def said(
    standing: Standing | None, events: EventLines | None = None, baseline: BaselineLook | None = None
) -> dict[str, Any]:
    body = history_json(
        stream="s",
        branch="main",
        standing=standing,
        events=events or EventLines(),
        baseline=baseline,
        baseline_title="no retention",
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    told = json.loads(body, parse_constant=refuse)
    assert isinstance(told, dict)
    return told


def many(classes: int, evaluations: int) -> Standing:
    """A history of made accuracies; each class comes some evaluations after the one before."""
    history, draws = ForgettingHistory(LearnerSettings().evaluation), random.Random(0)
    for number in range(evaluations):
        known = range(min(classes, 1 + number * classes // (evaluations - 1)))
        history.record(100 * (number + 1), {f"class {each}": (draws.random(), 30) for each in known})
    return Standing(report=history.newest_report(), course=history.course, records_consumed=100 * evaluations)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return learnt(tmp_path_factory.mktemp("digits"))


def test_of_a_state_it_says_what_the_state_says(world: World) -> None:
    found = newest_standing(world.folder)
    assert found is not None
    told = said(found.standing)
    learner = StreamLearner(world.settings)
    learner.load_state(world.newest().state)
    report, points = learner.forgetting.newest_report(), learner.forgetting.points
    assert report is not None
    assert told["records"] == learner.records_consumed
    assert told["evaluated"]["at"] == report.at_records
    assert told["evaluated"]["accuracy"] == pytest.approx(report.average_accuracy, abs=5e-5)
    assert told["evaluated"]["forgetting"] == pytest.approx(report.average_forgetting, abs=5e-5)
    assert told["course"]["at"] == [point.at_records for point in points]
    assert told["course"]["kept"] == told["course"]["made"] == len(points)
    classes = {entry["name"]: entry for entry in told["classes"]}
    assert list(classes) == [entry.name for entry in report.classes]
    counts = learner.replay_counts()
    for entry in report.classes:
        shown = classes[entry.name]
        assert shown["accuracy"] == pytest.approx(entry.accuracy, abs=5e-5)
        assert shown["best"] == pytest.approx(entry.best, abs=5e-5)
        assert shown["forgetting"] == pytest.approx(entry.forgetting, abs=1e-4)
        assert (shown["n"], shown["at"], shown["counts"]) == (entry.n, entry.at_records, entry.in_averages)
        assert shown["replay"] == counts[entry.name]
        for point, units in zip(points, shown["course"], strict=True):
            if entry.name in point.class_accuracies:
                assert units == pytest.approx(10_000 * point.class_accuracies[entry.name], abs=0.51)
            else:
                assert units is None
    assert sum(counts.values()) > 0


def test_an_older_snapshot_can_be_chosen(world: World) -> None:
    entries = world.store.entries()
    assert len(entries) > 1
    found = standing_at(world.folder, str(entries[0].sequence), option="--snapshot")
    assert found.standing.records_consumed == entries[0].facts["records_consumed"]
    with pytest.raises(UserError, match="holds no snapshot 99; there is"):
        standing_at(world.folder, "99", option="--snapshot")


def test_a_broken_newest_snapshot_is_passed_over_and_none_at_all_is_said(tmp_path: Path) -> None:
    world = learnt(tmp_path)
    newest = world.newest_entry()
    (newest.path / "state.json").write_bytes(b"{}")
    found = newest_standing(world.folder)
    assert found is not None
    assert found.entry.number < newest.number
    with pytest.raises(UserError, match="is not whole"):
        standing_at(world.folder, str(newest.sequence), option="--snapshot")
    with pytest.raises(UserError, match="holds no whole snapshot; `palimpsest learn"):
        newest_standing(tmp_path / "empty")


def test_before_the_state_is_loaded_and_before_the_first_evaluation() -> None:
    told = said(None)
    assert (told["evaluated"], told["course"], told["classes"], told["baseline"]) == (None, None, [], None)
    empty = ForgettingHistory(LearnerSettings().evaluation)
    told = said(Standing(report=None, course=empty.course, replay={"new": 3}))
    assert told["course"] == {"at": [], "accuracy": [], "forgetting": [], "made": 0, "kept": 0}
    (new,) = told["classes"]
    assert (new["name"], new["accuracy"], new["replay"], new["course"]) == ("new", None, 3, [])


@pytest.mark.parametrize(("classes", "evaluations"), [(3, 3_000), (600, 450), (3_000, 100)])
def test_it_is_bounded_however_many_classes_and_evaluations(classes: int, evaluations: int) -> None:
    standing = many(classes, evaluations)
    began = time.perf_counter()
    told = said(standing)
    assert time.perf_counter() - began < 5.0  # it is a tenth of a second on an idle machine
    columns = len(told["course"]["at"])
    assert 24 <= columns <= 400
    assert columns * classes <= 210_000
    assert len(told["classes"]) == classes
    assert all(len(entry["course"]) == columns for entry in told["classes"])
    assert told["course"]["made"] == evaluations
    assert told["course"]["at"][-1] == 100 * evaluations, "the newest is shown"


def test_events_that_do_not_say_it_stand_where_their_time_does() -> None:
    log = EventLog()
    log.add(
        [
            event_of("a", "drift", {"records_consumed": 1000}, time_seconds=100.0),
            event_of("b", "promoted", {"from": 1, "to": 2, "by": "ada"}, time_seconds=150.0),
            event_of("c", "drift", {"records_consumed": 3000}, time_seconds=200.0),
            event_of("d", "promoted", {"from": 2, "to": 3, "by": "ada"}, time_seconds=900.0),
            event_of("e", "version_registered", {"version": 3, "tags": {}}, time_seconds=250.0),
        ]
    )
    told = said(None, log.lines)
    assert [(line["at"], line["near"]) for line in told["events"]["lines"]] == [
        (1000, 1000),
        (None, 2000),
        (3000, 3000),
        (None, 3000),
        (None, 3000),
    ]
    (version,) = told["versions"]
    assert (version["version"], version["role"]) == (3, "champion")
    assert said(None, EventLines())["events"] == {"left_out": False, "problem": None, "lines": []}


def test_a_baseline_stands_beside(world: World, tmp_path: Path) -> None:
    plain = learnt(tmp_path, retention={})
    own = newest_standing(world.folder)
    assert own is not None
    told = said(own.standing, baseline=Baseline(plain.folder, stream=STREAM).look())
    beside = told["baseline"]
    assert (beside["title"], beside["branch"], beside["problem"]) == ("no retention", "main", None)
    assert beside["course"]["at"] == told["course"]["at"]
    assert beside["evaluated"]["forgetting"] > told["evaluated"]["forgetting"]
    assert set(beside["classes"]) == {entry["name"] for entry in told["classes"]}


def test_a_baseline_that_is_not_there_or_another_stream_s_says_why(world: World, tmp_path: Path) -> None:
    beside = said(None, baseline=Baseline(tmp_path, stream=STREAM).look())["baseline"]
    assert (beside["course"], beside["classes"]) == (None, {})
    assert beside["problem"].startswith(f"{tmp_path} holds no whole snapshot")
    other = Baseline(world.folder, stream="pets").look()
    assert other.found is None
    assert "which is another one" in (other.problem or "")


def test_a_state_of_another_release_is_shown_where_its_evaluations_can_be_read(tmp_path: Path) -> None:
    world = learnt(tmp_path)
    newest = world.newest()
    settings = cast("dict[str, dict[str, Any]]", newest.facts["settings"])

    def written(number: int, changed: dict[str, dict[str, Any]]) -> None:
        other: Mapping[str, Json] = {"settings": cast(Json, changed), "environment": {"palimpsest": "9.0"}}
        facts = {**newest.facts, **other}
        world.store.write(replace(newest, generation=9, sequence=number, facts=facts))

    written(1, {**settings, "of_a_later_release": {"a": 1}})
    found = newest_standing(world.folder)
    assert found is not None
    assert found.entry.number == (9, 1)
    assert found.standing.report is not None
    written(2, {**settings, "evaluation": {**settings["evaluation"], "of_a_later_release": 1}})
    with pytest.raises(UserError, match=r"is of release 9\.0, whose evaluation settings are not those of this one"):
        newest_standing(world.folder)
    look = Baseline(world.folder, stream=STREAM).look()
    assert (look.found, (look.problem or "").endswith("have it shown by a palimpsest of that release")) == (None, True)


def test_hostile_labels_are_data() -> None:
    """Any UTF-8 string up to 256 bytes is a class."""
    history = ForgettingHistory(LearnerSettings().evaluation)
    labels = ["</script><script>alert(1)</script>", '"', "\\", "\n", "", "\u2028", "語" * 85, "__proto__", "\x00"]
    history.record(10, dict.fromkeys(labels, (0.5, 30)))
    told = said(Standing(report=history.newest_report(), course=history.course, replay=dict.fromkeys(labels, 1)))
    assert [entry["name"] for entry in told["classes"]] == labels


def test_no_average_is_null() -> None:
    history = ForgettingHistory(LearnerSettings().evaluation)
    history.record(10, {"few": (0.5, 1)})
    told = said(Standing(report=history.newest_report(), course=history.course))
    assert told["evaluated"]["accuracy"] is None
    assert told["course"]["accuracy"] == [None]
    assert not told["classes"][0]["counts"]
    assert not math.isnan(told["classes"][0]["error"])


def test_half_a_character_in_an_event_does_not_keep_the_rest_from_being_said() -> None:
    log = EventLog()
    log.add([event_of("\ud800", "new_class", {"class": "a\ud800\\b"}, time_seconds=1.0)])
    (line,) = said(None, log.lines)["events"]["lines"]
    assert (line["id"], line["text"]) == ("\ud800", "class a\ud800\\b is new")
