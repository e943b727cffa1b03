from __future__ import annotations

import pytest

from pipeline.restructuring.acceptance import AcceptanceSettings, judged

PARENT = {"cat": (0.9, 50), "dog": (0.6, 50), "owl": (0.3, 5)}


def offer(cat: float, dog: float, owl: float = 0.3) -> dict[str, tuple[float, int]]:
    return {"cat": (cat, 50), "dog": (dog, 50), "owl": (owl, 5)}


def test_no_worse_is_accepted_and_the_reasons_say_how_it_stands() -> None:
    judgement = judged(PARENT, offer(0.88, 0.7), AcceptanceSettings())
    assert judgement.accepted
    assert judgement.judged == ("cat", "dog")  # five owls judge nothing
    assert judgement.average_before == pytest.approx(0.75)
    assert judgement.average_after == pytest.approx(0.79)
    assert (judgement.worst_before, judgement.worst_after) == ("dog", "dog")
    assert judgement.reasons == (
        "average accuracy went from 75.0% to 79.0%",
        "the worst class, 'dog' before and 'dog' now, went from 60.0% to 70.0%",
        "class 'cat', which changed for the worst, went from 90.0% to 88.0%",
    )


def test_margins() -> None:
    settings = AcceptanceSettings(average_margin=0.02, worst_class_margin=0.05, class_margin=0.1)
    assert judged(PARENT, offer(0.87, 0.6), settings).accepted
    average = judged(PARENT, offer(0.85, 0.6), settings)
    assert not average.accepted
    assert average.reasons[0] == "average accuracy went from 75.0% to 72.5%, and may fall by 2.0%"
    worst = judged(PARENT, offer(0.98, 0.54), settings)
    assert worst.reasons[0].startswith("the worst class, 'dog' before and 'dog' now, went from 60.0% to 54.0%")
    assert not worst.accepted
    swapped = judged(PARENT, offer(0.79, 0.9), settings)
    assert swapped.reasons[0].startswith("class 'cat', which changed for the worst, went from 90.0% to 79.0%")
    assert not swapped.accepted


def test_a_network_that_has_grown_must_be_worth_it() -> None:
    settings = AcceptanceSettings(average_margin=0.02)
    assert judged(PARENT, offer(0.89, 0.6), settings).accepted
    fallen = judged(PARENT, offer(0.89, 0.6), settings, has_grown=True)
    assert not fallen.accepted
    assert fallen.reasons[0] == ("average accuracy of the grown network went from 75.0% to 74.5%, and may not fall")
    assert judged(PARENT, offer(0.9, 0.6), settings, has_grown=True).accepted
    gain = AcceptanceSettings(growth_gain=0.01)
    too_little = judged(PARENT, offer(0.91, 0.6), gain, has_grown=True)
    assert too_little.reasons[0] == (
        "average accuracy of the grown network went from 75.0% to 75.5%, and must rise by 1.0%"
    )
    assert not too_little.accepted
    assert judged(PARENT, offer(0.93, 0.6), gain, has_grown=True).accepted
    assert judged(PARENT, offer(0.91, 0.6), gain).accepted


def test_rounding_refuses_nothing() -> None:
    """(0.2 + 0.7) / 2 is a little less than (0.1 + 0.8) / 2 in floating point."""
    before, after = ({"cat": (cat, 50), "dog": (dog, 50)} for cat, dog in ((0.1, 0.8), (0.2, 0.7)))
    judgement = judged(before, after, AcceptanceSettings(worst_class_margin=1, class_margin=1), has_grown=True)
    assert judgement.average_after is not None
    assert judgement.average_before is not None
    assert judgement.average_after < judgement.average_before
    assert judgement.accepted


def test_nothing_to_judge_by_is_a_refusal() -> None:
    few = judged({"owl": (0.3, 5)}, {"owl": (0.9, 5)}, AcceptanceSettings())
    assert not few.accepted
    (reason,) = few.reasons
    assert reason.startswith("no class has 20 held-out samples (the most are 5): nothing judges an offer; let more")
    assert not judged({}, {}, AcceptanceSettings()).accepted


def test_the_hold_outs_must_be_the_same() -> None:
    with pytest.raises(AssertionError, match="not the same hold-outs"):
        judged(PARENT, {"cat": (0.9, 50)}, AcceptanceSettings())
