"""What `palimpsest check` found: facts, each with a verdict, and the way out where there is something to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # `palimpsest status` says times as this does, and must not wait for torch
    from pipeline.state import Json

# "problem": a learner does not start, stops sooner or later, or loses something. "warning": it might.
Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that was looked at."""

    part: str  # of the whole: "brokers", "topics", "state", ...
    name: str
    value: str
    verdict: Verdict = "ok"
    way_out: str = ""

    def __post_init__(self) -> None:
        assert (self.verdict == "ok") == (not self.way_out), f"{self.name}: a way out where one is needed, only there"

    @property
    def as_json(self) -> Json:
        return {
            "part": self.part,
            "name": self.name,
            "verdict": self.verdict,
            "value": self.value,
            "way_out": self.way_out,
        }


def judged(part: str, name: str, value: object, verdict: Verdict, way_out: str) -> Fact:
    """A fact whose way out is only shown where the verdict is not "ok"."""
    return Fact(part=part, name=name, value=str(value), verdict=verdict, way_out="" if verdict == "ok" else way_out)


def is_healthy(facts: Iterable[Fact]) -> bool:
    """Nothing among them is a problem; warnings may be."""
    return all(fact.verdict != "problem" for fact in facts)


def days(seconds: float) -> str:
    """A length of time for a person, in the largest unit that leaves at least one of it."""
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def mebibytes(size: int) -> str:
    return f"{size / 1024 / 1024:,.1f} MiB"
