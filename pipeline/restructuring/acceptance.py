"""Whether what a restructuring offers is taken: judged on the hold-outs, class by class, beside its parent.

The same hold-outs judge both, so that what one of them finds hard, the other does too. A margin allows for what so few
samples cannot tell apart: on 50 samples at 90 % the standard error is 4 points.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.settings_section import Section, changeable

Accuracies = Mapping[str, tuple[float, int]]  # {class: (accuracy, n)}


_ROUNDING = 1e-9  # means of the same sum differ by as much, and must not refuse anything


class AcceptanceSettings(Section):
    """Each margin is in accuracy, 0 to 1."""

    average_margin: float = changeable(0.01, ge=0, le=1, why="the average may fall by so much")
    growth_gain: float = changeable(
        0.0,
        ge=-1,
        le=1,
        why="where the network has grown, which costs time in every update and prediction, the average has to rise by "
        "so much instead; below 0: it may fall",
    )
    worst_class_margin: float = changeable(
        0.05, ge=0, le=1, why="the lowest accuracy of a class may fall by so much, whichever class it is then"
    )
    class_margin: float = changeable(
        0.2, ge=0, le=1, why="no single class may lose more, though another one stays the worst"
    )
    min_class_samples: int = changeable(20, ge=1, why="classes with fewer held-out samples are not judged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Of classes with enough samples only. The reasons are lines for a person; refused, the first says why."""

    accepted: bool
    reasons: tuple[str, ...]
    judged: tuple[str, ...]  # classes
    average_before: float | None  # None: there is nothing to judge by
    average_after: float | None
    worst_before: str | None
    worst_after: str | None


def judgeable(accuracies: Accuracies, settings: AcceptanceSettings) -> tuple[str, ...]:
    """The classes with enough samples."""
    return tuple(name for name, (_, n) in accuracies.items() if n >= settings.min_class_samples)


def judged(
    parent: Accuracies, offer: Accuracies, settings: AcceptanceSettings, *, has_grown: bool = False
) -> Judgement:
    """Both on the same hold-outs. Where no class has enough samples nothing speaks for an offer, and it is refused.
    `has_grown`: the offer's network has more sub-modules."""
    assert parent.keys() == offer.keys(), f"not the same hold-outs: {sorted(parent.keys() ^ offer.keys())}"
    classes = judgeable(parent, settings)
    if not classes:
        most = max((n for _, n in parent.values()), default=0)
        reason = (
            f"no class has {settings.min_class_samples} held-out samples (the most are {most}): nothing judges an "
            "offer; let more records come, or lower acceptance.min_class_samples"
        )
        return Judgement(
            accepted=False,
            reasons=(reason,),
            judged=(),
            average_before=None,
            average_after=None,
            worst_before=None,
            worst_after=None,
        )
    before, after = ({name: of[name][0] for name in classes} for of in (parent, offer))
    averages = statistics.fmean(before.values()), statistics.fmean(after.values())
    worst_before, worst_after = min(classes, key=before.__getitem__), min(classes, key=after.__getitem__)
    fallen = max(classes, key=lambda name: before[name] - after[name])
    average_margin = -settings.growth_gain if has_grown else settings.average_margin
    compared = (
        ("average accuracy of the grown network" if has_grown else "average accuracy", *averages, average_margin),
        (
            f"the worst class, {worst_before!r} before and {worst_after!r} now,",
            before[worst_before],
            after[worst_after],
            settings.worst_class_margin,
        ),
        (f"class {fallen!r}, which changed for the worst,", before[fallen], after[fallen], settings.class_margin),
    )
    against, by_the_way = [], []
    for what, was, now, margin in compared:
        line = f"{what} went from {was:.1%} to {now:.1%}"
        if now < was - margin - _ROUNDING:
            against.append(f"{line}, and {_may_fall(margin)}")
        else:
            by_the_way.append(line)
    return Judgement(
        accepted=not against,
        reasons=(*against, *by_the_way),
        judged=classes,
        average_before=averages[0],
        average_after=averages[1],
        worst_before=worst_before,
        worst_after=worst_after,
    )


def _may_fall(margin: float) -> str:
    if margin > 0:
        return f"may fall by {margin:.1%}"
    return f"must rise by {-margin:.1%}" if margin else "may not fall"
