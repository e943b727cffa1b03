"""When to restructure: a policy over what the stream learner counts; a worker does what it asks for.

It counts records, never seconds, so that a learner that was killed asks again for the same at the same record.

The *base* of the next job is the model as it was before the new classes. Classes that come one after another, with
fewer than `settle_records` between them, come together: until they have settled no job begins, since the specialist
would lack the records of the last ones; and the first ones of a stream are new to nobody, so they become the base.

There are two kinds of job. Where the present network has not learnt the new classes well enough, it is to grow by a
sub-module (EDE-Net); else, or where it has as many as the budget allows, all that it has learnt is to be folded back
into one compact network (DMC). So it grows and shrinks, and its size stays bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from pipeline.restructuring.new_class_accuracy import ClassSeen, NewClassAccuracy
from pipeline.settings_section import Section, changeable
from pipeline.state import StateTree


class Reason(StrEnum):
    """Why a job was asked for: the value of an event's field and of a metric's label."""

    NEW_CLASSES = "new_classes"
    PERIOD = "period"
    DRIFT = "drift"
    FORGETTING = "forgetting"
    BUDGET = "budget"  # it would have, or has, more sub-modules than it may


class Kind(StrEnum):
    """Which job is asked for: the value of an event's field, of a version's tag, and the beginning of a job's name."""

    CONSOLIDATION = "consolidation"
    EXPANSION = "expansion"


class RestructuringSettings(Section):
    """When a job is asked for. Changeable: asking changes nothing that is learnt, and an adoption is a decision of its
    own, which is recorded."""

    new_classes: int | None = changeable(
        5, ge=1, why="so many classes since the last restructuring ask for one; none: classes do not"
    )
    every_records: int | None = changeable(
        None, ge=1, why="records consumed from one job to the next, where a class is new meanwhile; none: no period"
    )
    on_drift: bool = changeable(
        False, why="a drift of the prequential error asks for one, where a class is new since the last"
    )
    forgetting_above: float | None = changeable(
        None,
        ge=0,
        le=1,
        why="average forgetting above this asks for one, where a class is new since the last; none: it does not",
    )
    settle_records: int = changeable(
        2_000, ge=1, why="no job begins before so many records have come since the newest class"
    )
    rest_records: int = changeable(
        10_000, ge=0, why="after a job, whatever became of it, the next begins no sooner than so many records later"
    )
    # EDE-Net expands only where training does not come far enough, and its paper gives no figure for that. A network
    # that gets nine of ten right of what it was shown last has room for it; what it gets wrong then, more features
    # rarely mend, while every sub-module costs time in each update and prediction until a consolidation.
    expand_below: float | None = changeable(
        0.9,
        ge=0,
        le=1,
        why="the network grows where the mean hold-out accuracy of the new classes is below this once they have "
        "settled (1: wherever one is judged); none: it never does, and no evaluation is waited for",
    )
    # each adds about a network's worth of parameters and time, less what is pruned
    most_sub_modules: int = changeable(
        3, ge=1, le=64, why="a network with so many does not grow but is consolidated; nor is one left with more"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """After a step of the learner."""

    records_before: int  # consumed before the step
    records_consumed: int
    known_classes: int
    drift: bool = False  # the detector fired after this step
    average_forgetting: float | None = None  # of this step's evaluation, where there was one
    # By logit column, so in order of first appearance: what stands of each known class after this step's evaluation,
    # None of one without held-out samples. None: there was no evaluation.
    evaluated: Sequence[ClassSeen | None] | None = None
    sub_modules: int = 1  # of the present network


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job that was asked for, and has not ended."""

    reason: Reason
    at_records: int  # consumed when it was asked for: no two requests of a state share it
    kind: Kind = Kind.CONSOLIDATION


class RestructuringTrigger:
    """Its state is part of the snapshot's. One job at a time: after a request nothing is asked for until `ended`."""

    def __init__(self, settings: RestructuringSettings) -> None:
        self._settings = settings
        self._known = 0  # classes so far
        self._newest_class_at = 0  # records consumed when the newest class came
        self._base_classes: int | None = None  # known before the new ones; None: the first ones have not settled
        self._base_at = 0  # the last step before the first new class, in records consumed
        self._last_at = 0  # records consumed when the last job ended
        self._drifted = False  # since the last job
        self._forgetting = 0.0  # of the newest evaluation
        self._new_class_accuracy = NewClassAccuracy()
        self._request: Request | None = None

    @property
    def request(self) -> Request | None:
        """What was asked for and has not ended."""
        return self._request

    @property
    def has_base(self) -> bool:
        """Whether the first classes have settled. A snapshot from then on, and from before any new class, must be
        there: without one the new classes could never be consolidated."""
        return self._base_classes is not None

    @property
    def new_classes(self) -> int:
        """Since the base."""
        return 0 if self._base_classes is None else self._known - self._base_classes

    @property
    def base_at_records(self) -> int | None:
        """Records consumed at the last step before the first new class: the newest snapshot with no more is the base,
        and is to be pinned. None while there is no new class."""
        return self._base_at if self.new_classes else None

    def observe(self, seen: Seen) -> Request | None:
        """A job is asked for now; None: nothing asks for one, or it is not the time.

        1. What is seen is noted.
        2. The first classes become the base when they have settled; later, a base moves on while there is no new class.
        3. How well the new classes are learnt is noted where they have settled and are evaluated.
        4. A job needs a new class, which has settled, and a rest since the last one.
        5. Where something asks for one, its kind is decided, which may have to wait for an evaluation.
        """
        # 1.
        came, had_new = seen.known_classes > self._known, self.new_classes > 0
        before = self._known
        self._known = seen.known_classes
        if came:
            self._newest_class_at = seen.records_consumed
            self._new_class_accuracy.forget()
        self._drifted = self._drifted or seen.drift
        if seen.average_forgetting is not None:
            self._forgetting = seen.average_forgetting
        settled = seen.records_consumed - self._newest_class_at >= self._settings.settle_records
        # 2.
        if self._base_classes is None and before and settled:
            self._base_classes = self._known
        if not self.new_classes:
            self._base_at = seen.records_consumed
        elif not had_new:  # not where this trigger was asked last: what is learnt once more it does not see
            self._base_at = seen.records_before
        # 3.
        settled_at = self._newest_class_at + self._settings.settle_records
        if seen.evaluated is not None and self.new_classes and settled:
            self._new_class_accuracy.observe(seen.evaluated[self._base_classes :], settled_at=settled_at)
        # 4.
        rested = seen.records_consumed - self._last_at >= self._settings.rest_records or not self._last_at
        if self._request is not None or not self.new_classes or not settled or not rested:
            return None
        # 5.
        self._request = self._job(seen)
        return self._request

    def _job(self, seen: Seen) -> Request | None:
        """What is asked for.

        A network with more sub-modules than it may have is consolidated in any case: the setting was lowered. One that
        is to grow and may not is consolidated too.
        """
        settings, at_records = self._settings, seen.records_consumed
        if seen.sub_modules > settings.most_sub_modules:
            return Request(reason=Reason.BUDGET, at_records=at_records)
        reason = self._reason(seen)
        if reason is None or settings.expand_below is None:
            return None if reason is None else Request(reason=reason, at_records=at_records)
        if not self._new_class_accuracy.is_known:
            return None
        if not self._new_class_accuracy.is_below(settings.expand_below):
            return Request(reason=reason, at_records=at_records)
        if seen.sub_modules == settings.most_sub_modules:
            return Request(reason=Reason.BUDGET, at_records=at_records)
        return Request(reason=reason, at_records=at_records, kind=Kind.EXPANSION)

    def _reason(self, seen: Seen) -> Reason | None:
        settings = self._settings
        if settings.new_classes is not None and self.new_classes >= settings.new_classes:
            return Reason.NEW_CLASSES
        if settings.every_records is not None and seen.records_consumed - self._last_at >= settings.every_records:
            return Reason.PERIOD
        if settings.on_drift and self._drifted:
            return Reason.DRIFT
        if settings.forgetting_above is not None and self._forgetting > settings.forgetting_above:
            return Reason.FORGETTING
        return None

    def ended(self, records_consumed: int, *, adopted_classes: int | None) -> None:
        """The job, of either kind, is done, or another was. `adopted_classes`: those that the network knows which was
        adopted, at the step of so many records, and which are the base from now on; None: it was refused, and the same
        base stands. (Where a job was refused since nobody has the base any more, those known now are the base.)"""
        self._request = None
        self._last_at = records_consumed
        self._drifted = False
        self._forgetting = 0.0
        if adopted_classes is not None:
            self._base_classes = adopted_classes
            self._base_at = records_consumed
            self._new_class_accuracy.forget()

    def state(self) -> StateTree:
        return {
            "known": self._known,
            "newest_class_at": self._newest_class_at,
            "base_classes": self._base_classes,
            "base_at": self._base_at,
            "last_at": self._last_at,
            "drifted": self._drifted,
            "forgetting": self._forgetting,
            "new_class_accuracy": self._new_class_accuracy.state(),
            "kind": None if self._request is None else str(self._request.kind),
            "reason": None if self._request is None else str(self._request.reason),
            "requested_at": None if self._request is None else self._request.at_records,
        }

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`; of an empty one (a release without triggers) a trigger that has seen nothing. What a
        release without expansions asked for is a consolidation."""
        fresh = type(self)(self._settings).state()
        state = {**fresh, **state}
        self._known = cast(int, state["known"])
        self._newest_class_at = cast(int, state["newest_class_at"])
        self._base_classes = cast("int | None", state["base_classes"])
        self._base_at = cast(int, state["base_at"])
        self._last_at = cast(int, state["last_at"])
        self._drifted = cast(bool, state["drifted"])
        self._forgetting = cast(float, state["forgetting"])
        self._new_class_accuracy.load_state(cast(StateTree, state["new_class_accuracy"]))
        reason, at_records = cast("str | None", state["reason"]), cast("int | None", state["requested_at"])
        self._request = None
        if reason is not None and at_records is not None:
            # releases before there were expansions saved no kind
            kind = Kind(cast("str | None", state["kind"]) or Kind.CONSOLIDATION)
            self._request = Request(reason=Reason(reason), at_records=at_records, kind=kind)
