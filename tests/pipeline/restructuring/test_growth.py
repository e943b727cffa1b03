"""When the trigger lets the network grow, and when it has it consolidated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.restructuring.new_class_accuracy import ClassSeen
from pipeline.restructuring.trigger import Kind, Reason, Request, RestructuringSettings, RestructuringTrigger, Seen

_SETTLED = 300  # records consumed where the classes of `with_new_classes` have


def trigger(**changes: Any) -> RestructuringTrigger:
    values = {"new_classes": 2, "settle_records": 100, "rest_records": 300, "expand_below": 0.9, **changes}
    return RestructuringTrigger(RestructuringSettings.model_validate(values))


def see(watch: RestructuringTrigger, records: int, classes: int = 4, **more: Any) -> Request | None:
    return watch.observe(Seen(records_before=records - 10, records_consumed=records, known_classes=classes, **more))


def looked_at(records: int, *accuracies: float | None) -> Sequence[ClassSeen | None]:
    """An evaluation of all classes; None: one without held-out samples."""
    return [
        None if accuracy is None else ClassSeen(accuracy=accuracy, at_records=records, is_judged=True)
        for accuracy in accuracies
    ]


def with_new_classes(**changes: Any) -> RestructuringTrigger:
    """Two classes of the base; two more came at record 200."""
    watch = trigger(**changes)
    for records, classes in ((10, 2), (110, 2), (200, 4)):
        assert see(watch, records, classes) is None
    return watch


def asked(kind: Kind, at_records: int = _SETTLED, reason: Reason = Reason.NEW_CLASSES) -> Request:
    return Request(reason=reason, at_records=at_records, kind=kind)


@pytest.mark.parametrize(
    ("accuracies", "kind"),
    [
        ((1.0, 1.0, 0.8, 0.9), Kind.EXPANSION),
        ((1.0, 1.0, 0.7, 1.0), Kind.EXPANSION),
        ((1.0, 1.0, 0.8, 1.0), Kind.CONSOLIDATION),  # not under it
        ((0.1, 0.1, 0.9, 1.0), Kind.CONSOLIDATION),  # forgotten, not badly learnt: growing would not help
        ((1.0, 1.0, 0.8, None), Kind.EXPANSION),  # one that nothing is held out of says nothing
        ((1.0, 1.0, None, None), Kind.CONSOLIDATION),
    ],
)
def test_it_grows_where_the_new_classes_are_not_learnt_well_enough(
    accuracies: Sequence[float | None], kind: Kind
) -> None:
    watch = with_new_classes()
    assert see(watch, _SETTLED, evaluated=looked_at(_SETTLED, *accuracies)) == asked(kind)
    assert watch.request == asked(kind)


def test_a_class_with_few_held_out_samples_is_not_judged() -> None:
    watch = with_new_classes()
    few = ClassSeen(accuracy=0.0, at_records=_SETTLED, is_judged=False)
    seen = [*looked_at(_SETTLED, 1.0, 1.0, 0.95), few]
    assert see(watch, _SETTLED, evaluated=seen) == asked(Kind.CONSOLIDATION)


def test_it_waits_for_an_evaluation_of_settled_classes() -> None:
    watch = with_new_classes()
    assert see(watch, 290, evaluated=looked_at(290, 1.0, 1.0, 0.1, 0.1)) is None
    assert see(watch, _SETTLED) is None, "settled, but what was seen of them is from before"
    assert see(watch, 340) is None
    assert see(watch, 350, evaluated=looked_at(350, 1.0, 1.0, 0.95, 0.95)) == asked(Kind.CONSOLIDATION, 350)


def test_it_waits_until_each_new_class_had_its_turn() -> None:
    watch = with_new_classes()
    old, early, late = (looked_at(at, 0.8)[0] for at in (110, 250, 310))
    assert see(watch, 310, evaluated=[old, old, early, late]) is None
    assert see(watch, 320, evaluated=[old, old, late, late]) == asked(Kind.EXPANSION, 320)


def test_where_nothing_is_held_out_it_consolidates() -> None:
    watch = with_new_classes()
    assert see(watch, _SETTLED) is None
    assert see(watch, 310, evaluated=[None] * 4) == asked(Kind.CONSOLIDATION, 310)


def test_the_newest_look_counts() -> None:
    """The classes were bad when they had settled, and good when the period was over."""
    watch = with_new_classes(new_classes=None, every_records=500)
    assert see(watch, 400, evaluated=looked_at(400, 1.0, 1.0, 0.5, 0.5)) is None
    assert see(watch, 450, evaluated=looked_at(450, 1.0, 1.0, 0.95, 0.95)) is None
    assert see(watch, 500) == asked(Kind.CONSOLIDATION, 500, Reason.PERIOD)


def test_what_was_seen_of_other_classes_does_not_count() -> None:
    watch = with_new_classes(new_classes=3)
    assert see(watch, _SETTLED, evaluated=looked_at(_SETTLED, 1.0, 1.0, 0.5, 0.5)) is None
    assert see(watch, 400, 5) is None
    assert see(watch, 500, 5) is None, "settled; the evaluation is from before it came"
    assert see(watch, 510, 5, evaluated=looked_at(510, 1.0, 1.0, 0.9, 0.9, 0.9)) == asked(Kind.CONSOLIDATION, 510)


def test_after_an_adopted_expansion_its_classes_are_the_base() -> None:
    watch = with_new_classes()
    assert see(watch, _SETTLED, evaluated=looked_at(_SETTLED, 1.0, 1.0, 0.5, 0.5)) == asked(Kind.EXPANSION)
    watch.ended(_SETTLED, adopted_classes=4)
    assert (watch.request, watch.new_classes, watch.base_at_records) == (None, 0, None)
    assert see(watch, 600, 6, sub_modules=2) is None
    assert see(watch, 700, 6, sub_modules=2) is None, "what was seen of the classes before does not count"
    evaluated = looked_at(710, 1.0, 1.0, 0.1, 0.1, 0.9, 0.9)  # the fourth and fifth are not new any more
    assert see(watch, 710, 6, evaluated=evaluated, sub_modules=2) == asked(Kind.CONSOLIDATION, 710)


def test_after_a_refused_expansion_the_same_is_asked_for_again() -> None:
    watch = with_new_classes()
    assert see(watch, _SETTLED, evaluated=looked_at(_SETTLED, 1.0, 1.0, 0.5, 0.5)) == asked(Kind.EXPANSION)
    watch.ended(400, adopted_classes=None)
    assert see(watch, 690) is None
    assert see(watch, 700) == asked(Kind.EXPANSION, 700)


@pytest.mark.parametrize(
    ("sub_modules", "request_"),
    [
        (1, asked(Kind.EXPANSION)),
        (2, asked(Kind.EXPANSION)),
        (3, asked(Kind.CONSOLIDATION, reason=Reason.BUDGET)),
        (4, asked(Kind.CONSOLIDATION, reason=Reason.BUDGET)),
    ],
)
def test_it_does_not_grow_beyond_the_budget(sub_modules: int, request_: Request) -> None:
    watch = with_new_classes()
    evaluated = looked_at(_SETTLED, 1.0, 1.0, 0.5, 0.5)
    assert see(watch, _SETTLED, evaluated=evaluated, sub_modules=sub_modules) == request_


def test_as_many_sub_modules_as_allowed_are_no_reason_of_their_own() -> None:
    watch = with_new_classes()
    evaluated = looked_at(_SETTLED, 1.0, 1.0, 0.95, 0.95)
    assert see(watch, _SETTLED, evaluated=evaluated, sub_modules=3) == asked(Kind.CONSOLIDATION)


@pytest.mark.parametrize("expand_below", [0.9, None])
def test_more_sub_modules_than_allowed_are_consolidated(expand_below: float | None) -> None:
    """The setting was lowered: nothing else asks, and no evaluation is waited for. Without a new class there is nothing
    that a specialist could learn."""
    watch = trigger(new_classes=None, most_sub_modules=2, expand_below=expand_below)
    for records, classes in ((10, 2), (110, 2), (600, 2), (610, 3), (700, 3)):
        assert see(watch, records, classes, sub_modules=3) is None
    assert see(watch, 710, 3, sub_modules=3) == asked(Kind.CONSOLIDATION, 710, Reason.BUDGET)


def test_without_growth_nothing_is_waited_for() -> None:
    watch = with_new_classes(expand_below=None)
    assert see(watch, _SETTLED, sub_modules=3) == asked(Kind.CONSOLIDATION)


def test_it_goes_on_after_a_restart() -> None:
    """Killed after any step, it asks for the same at the same record."""
    bad = (1.0, 1.0, 0.6, 0.6)
    steps: list[dict[str, Any]] = [
        {"records": 10, "classes": 2},
        {"records": 110, "classes": 2},
        {"records": 200, "classes": 4, "evaluated": looked_at(200, *bad)},
        {"records": 310, "evaluated": looked_at(310, *bad)},
        {"records": 320, "drift": True},
        {"records": 330},
    ]
    straight = trigger(new_classes=None, on_drift=True)
    expected = [see(straight, **step) for step in steps]
    assert expected[-2] == asked(Kind.EXPANSION, 320, Reason.DRIFT)
    for stop in range(len(steps) + 1):
        first, second = trigger(new_classes=None, on_drift=True), trigger(new_classes=None, on_drift=True)
        got = [see(first, **step) for step in steps[:stop]]
        second.load_state(json.loads(json.dumps(first.state())))
        assert second.request == first.request
        got += [see(second, **step) for step in steps[stop:]]
        assert got == expected
        assert second.state() == straight.state()


def test_a_state_from_before_there_were_expansions() -> None:
    watch = with_new_classes(expand_below=None)
    see(watch, _SETTLED)
    state = {key: value for key, value in watch.state().items() if key not in ("kind", "new_class_accuracy")}
    later = trigger()
    later.load_state(state)
    assert later.request == asked(Kind.CONSOLIDATION)
    later.ended(_SETTLED, adopted_classes=None)
    assert see(later, 600) is None, "nothing was seen of the new classes yet"
    assert see(later, 610, evaluated=looked_at(610, 1.0, 1.0, 0.5, 0.5)) == asked(Kind.EXPANSION, 610)


@pytest.mark.parametrize("changes", [{"expand_below": 1.5}, {"expand_below": -0.1}, {"most_sub_modules": 0}])
def test_settings_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        trigger(**changes)


def test_the_defaults() -> None:
    settings = RestructuringSettings()
    assert (settings.expand_below, settings.most_sub_modules) == (0.9, 3)
