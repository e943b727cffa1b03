"""The gate: whether a challenger may take the champion's place, by figures of both and a bound for each.

The hold-outs judge both on the same rows (`pipeline.evaluation.version_figures`), the shadow's record by what both
answered to the same requests and what turned out to be true. A bound that nothing speaks to holds nobody back, but
something has to speak for a challenger: hold-outs, or a shadow's record that is long enough. Without a champion there
is nothing to be worse than: everything is shown, and the first version that answers passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model_store.promotion_settings import PromotionSettings
from pipeline.evaluation.version_figures import VersionFigures
from pipeline.evaluation.version_pair import PairScore
from pipeline.state import Json

Unit = Literal["ratio", "seconds", "count"]
Outcome = Literal["passed", "failed", "unknown"]

# Bounds are decimal, accuracies fractions: 0.90 - 0.01 is not 0.89 in floating point.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of the table. A figure is None where there is nothing to take it from."""

    name: str  # as in settings and events: average_accuracy
    unit: Unit
    champion: float | None
    challenger: float | None
    bound: str  # for a person: "may fall by 1.0%"
    outcome: Outcome
    why: str = ""  # of a failure or of what is unknown, one line; of others what there is to know


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Refused, the first reason says why. Every reason is a line for a person."""

    passed: bool
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    may_be_forced: bool = True  # False: what it promotes would serve nobody
    may_pass_later: bool = False  # nothing speaks against it yet, something is still to come

    @property
    def figures(self) -> dict[str, Json]:
        """{name: [champion's, challenger's]}, for the history."""
        return {check.name: [_rounded(check.champion), _rounded(check.challenger)] for check in self.checks}

    @property
    def as_json(self) -> dict[str, Json]:
        return {
            "passed": self.passed,
            "may_be_forced": self.may_be_forced,
            "reasons": list(self.reasons),
            "checks": [
                {
                    "name": check.name,
                    "unit": check.unit,
                    "champion": check.champion,
                    "challenger": check.challenger,
                    "bound": check.bound,
                    "outcome": check.outcome,
                    "why": check.why,
                }
                for check in self.checks
            ],
        }


def unservable(why: str) -> Verdict:
    """Of a version that could not be served at all: no force helps."""
    return Verdict(passed=False, checks=(), reasons=(why,), may_be_forced=False)


def unsettled(champions: int) -> Verdict:
    """Each of so many champions went while the version was judged against it."""
    why = (
        f"the champion changed {champions} times while this version was judged against it: find out who else promotes, "
        "and run it again when that has ended"
    )
    return Verdict(passed=False, checks=(), reasons=(why,), may_be_forced=False, may_pass_later=True)


def too_little_shadow(shadow: PairScore | None, settings: PromotionSettings) -> Verdict | None:
    """Of a gate that needs the shadow's record, before anything else is looked at; None where that is long enough."""
    check = _shadow_check(shadow, settings)
    if not settings.needs_shadow or check.outcome != "unknown":
        return None
    return Verdict(passed=False, checks=(check,), reasons=(_needs_shadow(check),), may_pass_later=True)


def judged(
    champion: VersionFigures | None,
    challenger: VersionFigures,
    shadow: PairScore | None,
    settings: PromotionSettings,
    *,
    no_hold_outs: str | None = None,
    champion_problem: str | None = None,
) -> Verdict:
    """`champion` None: there is none yet, or (`champion_problem` says why) it cannot be judged. `no_hold_outs`: why
    there are none, with the way out."""
    hold_outs = _hold_out_checks(champion, challenger, settings)
    checks = (*hold_outs, *_cost_checks(champion, challenger, settings), _shadow_check(shadow, settings))
    if champion is None and champion_problem is None:
        return Verdict(
            passed=True, checks=checks, reasons=("there is no champion yet: the first version that answers passes",)
        )
    against = [check.why for check in checks if check.outcome == "failed"]
    if champion_problem is not None:
        against.insert(0, f"the champion cannot be judged, so nothing is compared: {champion_problem}")
    unjudged = all(check.outcome == "unknown" for check in hold_outs)
    shadow_speaks = checks[-1].outcome != "unknown"
    missing = []
    if champion is not None and unjudged and not shadow_speaks:
        why = no_hold_outs or (
            f"no class has {settings.min_class_samples} held-out samples: let more records come, or lower "
            "promotion.min_class_samples"
        )
        missing.append(f"nothing judges it: {why}; and {checks[-1].why}")
    elif settings.needs_shadow and not shadow_speaks:
        missing.append(_needs_shadow(checks[-1]))
    if against or missing:
        return Verdict(
            passed=False, checks=checks, reasons=(*against, *missing), may_pass_later=bool(missing) and not against
        )
    spoken = [check for check in checks if check.outcome == "passed"]
    return Verdict(
        passed=True, checks=checks, reasons=(f"it is within all {len(spoken)} bounds that something judges",)
    )


def _hold_out_checks(
    champion: VersionFigures | None, challenger: VersionFigures, settings: PromotionSettings
) -> tuple[Check, ...]:
    before, after = champion, challenger
    worst = " and ".join(
        f"{figures.worst_class!r} of the {role}"
        for figures, role in ((before, "champion"), (after, "challenger"))
        if figures is not None and figures.worst_class is not None
    )
    return (
        _falls(
            "average_accuracy",
            None if before is None else before.average_accuracy,
            after.average_accuracy,
            settings.average_accuracy_margin,
            "the average accuracy",
        ),
        _falls(
            "worst_class_accuracy",
            None if before is None else before.worst_accuracy,
            after.worst_accuracy,
            settings.worst_class_margin,
            "the worst class's accuracy",
            note=worst,
        ),
        _rises(
            "forgetting",
            None if before is None else before.forgetting,
            after.forgetting,
            settings.forgetting_margin,
            "the average forgetting",
        ),
        _rises(
            "calibration_error",
            None if before is None else before.calibration_error,
            after.calibration_error,
            settings.calibration_margin,
            "the expected calibration error",
        ),
    )


def _cost_checks(
    champion: VersionFigures | None, challenger: VersionFigures, settings: PromotionSettings
) -> tuple[Check, ...]:
    return (
        _multiplies(
            "latency",
            "seconds",
            None if champion is None else champion.latency_seconds,
            challenger.latency_seconds,
            settings.latency_ratio,
            "the time of one prediction",
            free=settings.latency_free_seconds,
        ),
        _multiplies(
            "parameters",
            "count",
            None if champion is None else champion.parameters,
            challenger.parameters,
            settings.size_ratio,
            "the number of parameters",
        ),
    )


def _shadow_check(shadow: PairScore | None, settings: PromotionSettings) -> Check:
    labelled = 0 if shadow is None else shadow.labelled
    check = _falls(
        "shadow_accuracy",
        None if shadow is None else shadow.champion_accuracy,
        None if shadow is None else shadow.challenger_accuracy,
        settings.shadow_accuracy_margin,
        "the accuracy in the shadow's record",
        note=f"{labelled:,} labelled answers",
    )
    if labelled >= settings.min_shadow_labels:
        return check
    return Check(
        name=check.name,
        unit=check.unit,
        champion=check.champion,
        challenger=check.challenger,
        bound=check.bound,
        outcome="unknown",
        why=f"the shadow's record has {labelled:,} labelled answers of both, at least {settings.min_shadow_labels:,} "
        "say something (promotion.min_shadow_labels)",
    )


def _needs_shadow(check: Check) -> str:
    return f"promotion.needs_shadow is set, and {check.why}"


def _falls(name: str, before: float | None, after: float | None, margin: float, what: str, *, note: str = "") -> Check:
    is_worse = before is not None and after is not None and after < before - margin - _ROUNDING
    return _check(name, "ratio", before, after, f"may fall by {margin:.1%}", is_worse, what, note)


def _rises(name: str, before: float | None, after: float | None, margin: float, what: str) -> Check:
    is_worse = before is not None and after is not None and after > before + margin + _ROUNDING
    return _check(name, "ratio", before, after, f"may rise by {margin:.1%}", is_worse, what)


def _multiplies(
    name: str, unit: Unit, before: float | None, after: float | None, ratio: float, what: str, *, free: float = 0.0
) -> Check:
    """`free`: what it may come to in any case."""
    is_worse = before is not None and after is not None and after > max(free, before * ratio * (1 + _ROUNDING))
    return _check(name, unit, before, after, f"may become {ratio:g} times that", is_worse, what)


def _check(
    name: str,
    unit: Unit,
    before: float | None,
    after: float | None,
    bound: str,
    is_worse: bool,
    what: str,
    note: str = "",
) -> Check:
    outcome: Outcome = "unknown" if before is None or after is None else "failed" if is_worse else "passed"
    why = note
    if outcome == "failed":
        why = f"{what} goes from {shown(before, unit)} to {shown(after, unit)}, and {bound}"
        why += f" ({note})" if note else ""
    return Check(name=name, unit=unit, champion=before, challenger=after, bound=bound, outcome=outcome, why=why)


def shown(value: float | None, unit: Unit) -> str:
    """A figure for a person."""
    if value is None:
        return "-"
    match unit:
        case "ratio":
            return f"{value:.1%}"
        case "seconds":
            return f"{1000 * value:.2f} ms"
        case "count":
            return f"{value:,.0f}"


def _rounded(value: float | None) -> Json:
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")
