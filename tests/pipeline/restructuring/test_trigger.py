from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.restructuring.trigger import Kind, Reason, RestructuringSettings, RestructuringTrigger, Seen


def trigger(**changes: Any) -> RestructuringTrigger:
    """Which never grows (test_growth.py has those that do)."""
    values = {"new_classes": 2, "settle_records": 100, "rest_records": 300, "expand_below": None, **changes}
    return RestructuringTrigger(RestructuringSettings.model_validate(values))


def see(watch: RestructuringTrigger, records: int, classes: int, **more: Any) -> Reason | None:
    """As after each step of a learner; `records_before`: where the steps before were learnt once more."""
    before = more.pop("records_before", vars(watch).get("seen_at", 0))
    vars(watch)["seen_at"] = records
    request = watch.observe(Seen(records_before=before, records_consumed=records, known_classes=classes, **more))
    assert request is None or (request == watch.request and request.at_records == records)
    assert request is None or request.kind is Kind.CONSOLIDATION
    return None if request is None else request.reason


def settled() -> RestructuringTrigger:
    """Two classes, which have settled at record 110."""
    watch = trigger()
    for records, classes in ((10, 2), (60, 2), (110, 2)):
        assert see(watch, records, classes) is None
    return watch


def test_the_first_classes_are_new_to_nobody() -> None:
    watch = trigger(new_classes=1)
    for records, classes in ((10, 1), (90, 2), (180, 3), (270, 3)):
        assert see(watch, records, classes) is None
        assert (watch.has_base, watch.new_classes, watch.base_at_records) == (False, 0, None)
    assert see(watch, 280, 3) is None
    assert watch.has_base
    assert see(watch, 290, 4) is None
    assert watch.new_classes == 1
    assert see(watch, 390, 4) is Reason.NEW_CLASSES


def test_new_classes_that_have_settled() -> None:
    watch = settled()
    assert see(watch, 200, 3) is None
    assert watch.base_at_records == 110  # the newest snapshot from no later knows the old classes only
    assert see(watch, 310, 3) is None, "one of two"
    assert see(watch, 320, 4) is None
    assert see(watch, 419, 4) is None, "the newest has not settled"
    assert see(watch, 420, 4) is Reason.NEW_CLASSES
    assert watch.base_at_records == 110
    assert see(watch, 430, 4) is None, "one job at a time"
    assert watch.request is not None
    assert watch.request.at_records == 420


def test_after_an_adoption_the_parent_is_the_base() -> None:
    watch = settled()
    see(watch, 200, 4)
    assert see(watch, 300, 4) is Reason.NEW_CLASSES
    watch.ended(300, adopted_classes=4)
    assert see(watch, 310, 4) is None
    assert watch.new_classes == 0
    assert see(watch, 320, 6) is None
    assert see(watch, 450, 6) is None, "settled, but it has to rest"
    assert see(watch, 600, 6) is Reason.NEW_CLASSES


def test_a_class_that_comes_right_after_what_was_learnt_once_more() -> None:
    """The trigger was not asked meanwhile; the base is the last step before the class all the same."""
    watch = settled()
    see(watch, 200, 4)
    watch.ended(200, adopted_classes=4)
    see(watch, 700, 5, records_before=690)  # the steps up to there were learnt once more
    assert watch.base_at_records == 690


def test_after_a_refusal_the_base_stands_and_it_rests() -> None:
    watch = settled()
    see(watch, 200, 4)
    assert see(watch, 300, 4) is Reason.NEW_CLASSES
    watch.ended(400, adopted_classes=None)
    assert see(watch, 699, 4) is None
    assert watch.base_at_records == 110
    assert see(watch, 700, 4) is Reason.NEW_CLASSES


@pytest.mark.parametrize(
    ("changes", "more", "reason"),
    [
        ({"every_records": 250}, {}, Reason.PERIOD),
        ({"on_drift": True}, {"drift": True}, Reason.DRIFT),
        ({"forgetting_above": 0.1}, {"average_forgetting": 0.2}, Reason.FORGETTING),
        ({"forgetting_above": 0.1}, {"average_forgetting": 0.1}, None),
        ({}, {"drift": True, "average_forgetting": 1.0}, None),
    ],
)
def test_other_reasons(changes: dict[str, Any], more: dict[str, Any], reason: Reason | None) -> None:
    watch = trigger(new_classes=None, **changes)
    see(watch, 10, 2)
    see(watch, 110, 2)
    assert see(watch, 300, 2, **more) is None, "there is no new class to consolidate"
    assert see(watch, 310, 3, **more) is None
    assert see(watch, 410, 3) is reason


def test_it_goes_on_after_a_restart() -> None:
    steps: list[dict[str, Any]] = [
        {"records": 10, "classes": 2},
        {"records": 110, "classes": 2, "drift": True},
        {"records": 200, "classes": 3, "average_forgetting": 0.4},
        {"records": 290, "classes": 4},
        {"records": 400, "classes": 4},
        {"records": 410, "classes": 4},
    ]
    straight = trigger()
    expected = [see(straight, **step) for step in steps]
    assert expected[-2:] == [Reason.NEW_CLASSES, None]
    for stop in range(len(steps)):
        first, second = trigger(), trigger()
        got = [see(first, **step) for step in steps[:stop]]
        second.load_state(json.loads(json.dumps(first.state())))
        vars(second).update({"seen_at": vars(first).get("seen_at", 0)})
        got += [see(second, **step) for step in steps[stop:]]
        assert got == expected
        assert second.state() == straight.state()


def test_a_state_from_before_there_were_triggers() -> None:
    watch = trigger()
    watch.load_state({})
    assert watch.state() == trigger().state()
