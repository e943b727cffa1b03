"""The gate: each bound passes and fails, and what says nothing holds nobody back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from model_store.promotion import Verdict, judged, unservable
from model_store.promotion_settings import PromotionSettings
from pipeline.evaluation.version_figures import VersionFigures
from pipeline.evaluation.version_pair import PairScore

CHAMPION = VersionFigures(
    class_accuracies={"cat": (0.95, 40), "dog": (0.85, 40)},
    average_accuracy=0.90,
    worst_class="dog",
    worst_accuracy=0.85,
    forgetting=0.04,
    calibration_error=0.05,
    latency_seconds=0.001,
    parameters=1000,
)
SETTINGS = PromotionSettings()


def test_what_takes_no_time_to_speak_of_may_take_longer() -> None:
    tiny = {"latency_free_seconds": 0.004}
    assert verdict(settings=tiny, latency_seconds=0.004).passed
    assert not verdict(settings=tiny, latency_seconds=0.0041).passed


def shadow(champion: float, challenger: float, labelled: int = 100) -> PairScore:
    return PairScore(
        champion_version=1,
        challenger_version=2,
        labelled=labelled,
        champion_accuracy=champion,
        challenger_accuracy=challenger,
        agreement=0.9,
        answered=500,
    )


def verdict(*, record: PairScore | None = None, settings: dict[str, Any] | None = None, **figures: Any) -> Verdict:
    return judged(CHAMPION, replace(CHAMPION, **figures), record, PromotionSettings.model_validate(settings or {}))


@pytest.mark.parametrize(
    ("name", "at_the_bound", "past_it", "says"),
    [
        ("average_accuracy", 0.89, 0.8899, "the average accuracy goes from 90.0% to 89.0%, and may fall by 1.0%"),
        (
            "worst_accuracy",
            0.80,
            0.79,
            "the worst class's accuracy goes from 85.0% to 79.0%, and may fall by 5.0% "
            "('dog' of the champion and 'dog' of the challenger)",
        ),
        ("forgetting", 0.06, 0.07, "the average forgetting goes from 4.0% to 7.0%, and may rise by 2.0%"),
        (
            "calibration_error",
            0.07,
            0.08,
            "the expected calibration error goes from 5.0% to 8.0%, and may rise by 2.0%",
        ),
        (
            "latency_seconds",
            0.002,
            0.0021,
            "the time of one prediction goes from 1.00 ms to 2.10 ms, and may become 2 times that",
        ),
        ("parameters", 2000, 2001, "the number of parameters goes from 1,000 to 2,001, and may become 2 times that"),
    ],
)
def test_each_bound(name: str, at_the_bound: Any, past_it: Any, says: str) -> None:
    assert verdict(**{name: at_the_bound}).passed
    refused = verdict(**{name: past_it})
    assert not refused.passed
    assert refused.reasons == (says,)
    assert refused.may_be_forced
    assert not refused.may_pass_later
    assert [check.outcome for check in refused.checks].count("failed") == 1


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("average_accuracy_margin", "average_accuracy", 0.70),
        ("worst_class_margin", "worst_accuracy", 0.65),
        ("forgetting_margin", "forgetting", 0.24),
        ("calibration_margin", "calibration_error", 0.25),
    ],
)
def test_each_bound_is_a_setting(setting: str, name: str, value: Any) -> None:
    assert verdict(settings={setting: 0.2}, **{name: value}).passed
    assert not verdict(settings={setting: 0.19}, **{name: value}).passed


def test_ratios_are_settings() -> None:
    assert verdict(settings={"latency_ratio": 5, "size_ratio": 4}, latency_seconds=0.005, parameters=4000).passed
    assert (
        len(verdict(settings={"latency_ratio": 4.9, "size_ratio": 3.9}, latency_seconds=0.005, parameters=4000).reasons)
        == 2
    )


def test_better_passes_and_says_by_how_many_bounds() -> None:
    passed = verdict(average_accuracy=0.95, forgetting=0.0, parameters=10)
    assert passed.passed
    assert passed.reasons == ("it is within all 6 bounds that something judges",)
    assert passed.figures["average_accuracy"] == [0.9, 0.95]
    assert passed.figures["parameters"] == [1000, 10]
    assert passed.figures["shadow_accuracy"] == [None, None]


# -- the shadow's record -----------------------------------------------------------------------------------------------


def test_the_shadows_record() -> None:
    assert verdict(record=shadow(0.9, 0.89)).passed
    refused = verdict(record=shadow(0.9, 0.88))
    assert not refused.passed
    (reason,) = refused.reasons
    assert reason == (
        "the accuracy in the shadow's record goes from 90.0% to 88.0%, and may fall by 1.0% (100 labelled answers)"
    )
    assert verdict(record=shadow(0.9, 0.88), settings={"shadow_accuracy_margin": 0.02}).passed


def test_too_few_labels_are_shown_and_say_nothing() -> None:
    passed = verdict(record=shadow(0.9, 0.1, labelled=99))
    assert passed.passed
    last = passed.checks[-1]
    assert (last.outcome, last.champion, last.challenger) == ("unknown", 0.9, 0.1)
    assert last.why.startswith("the shadow's record has 99 labelled answers of both, at least 100 say something")
    assert not verdict(record=shadow(0.9, 0.1, labelled=99), settings={"min_shadow_labels": 99}).passed


def test_a_shadow_may_be_needed() -> None:
    waits = verdict(settings={"needs_shadow": True})
    assert not waits.passed
    assert waits.may_pass_later
    assert waits.reasons[0].startswith("promotion.needs_shadow is set, and the shadow's record has 0 labelled answers")
    assert verdict(record=shadow(0.9, 0.9), settings={"needs_shadow": True}).passed
    against = verdict(average_accuracy=0.5, settings={"needs_shadow": True})
    assert not against.may_pass_later, "it fails whatever the shadow will say"


NOTHING: dict[str, Any] = {
    "class_accuracies": {},
    "average_accuracy": None,
    "worst_class": None,
    "worst_accuracy": None,
    "forgetting": None,
    "calibration_error": None,
}


def test_something_has_to_speak_for_it() -> None:
    bare = replace(CHAMPION, **NOTHING)
    refused = judged(bare, bare, None, SETTINGS, no_hold_outs="without --state there are no hold-outs")
    assert not refused.passed
    (reason,) = refused.reasons
    assert reason.startswith("nothing judges it: without --state there are no hold-outs; and the shadow's record has 0")
    assert refused.may_be_forced
    (reason,) = judged(bare, bare, None, SETTINGS).reasons
    assert "no class has 20 held-out samples: let more records come, or lower promotion.min_class_samples" in reason
    assert judged(bare, bare, shadow(0.9, 0.9), SETTINGS).passed
    assert not judged(bare, bare, shadow(0.9, 0.8), SETTINGS).passed


# -- no champion, or none to compare with ------------------------------------------------------------------------------


def test_the_first_version_passes_and_everything_is_shown() -> None:
    passed = judged(None, CHAMPION, None, SETTINGS)
    assert passed.passed
    assert passed.reasons == ("there is no champion yet: the first version that answers passes",)
    assert {check.outcome for check in passed.checks} == {"unknown"}
    assert passed.figures["average_accuracy"] == [None, 0.9]


def test_a_champion_that_cannot_be_judged() -> None:
    refused = judged(None, CHAMPION, None, SETTINGS, champion_problem="models:/pets/1 cannot be opened")
    assert not refused.passed
    assert refused.may_be_forced
    assert refused.reasons == (
        "the champion cannot be judged, so nothing is compared: models:/pets/1 cannot be opened",
    )


def test_what_cannot_be_served_is_not_to_be_forced() -> None:
    refused = unservable("it is broken")
    assert (refused.passed, refused.may_be_forced, refused.reasons) == (False, False, ("it is broken",))
    assert refused.as_json["may_be_forced"] is False
