"""Puts a promotion together: what `palimpsest promote`, `palimpsest rollback` and the worker run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from consumers import promotion_events
from consumers.commit_log import BrokerUnavailable
from consumers.kafka_settings import KafkaSettings
from consumers.message_sender import tell
from consumers.version_teacher import find_version
from deploy.judging_versions import PairScores, judge, no_shadow
from deploy.settings import Settings
from model_store.model_uri import ModelUri
from model_store.promotion import Verdict
from model_store.promotion_history import Promotion
from model_store.promotion_steps import Moved, Promoter
from model_store.registry import RegisteredVersion, Registry
from pipeline.user_error import UserError

AUTOMATIC = "automatic"  # who promotes, where nobody does


class EventTeller:
    """Tells the stream's events; what the brokers do not take is remembered as `problem`, and ends nothing."""

    def __init__(self, settings: KafkaSettings, stream: str) -> None:
        self.problem: Exception | None = None
        self._settings = settings
        self._stream = stream

    def promoted(self, promotion: Promotion) -> bool:
        """Whether it is told. After a problem nobody is asked again: the next call is soon enough."""
        if self.problem is None:
            try:
                tell(self._settings, promotion_events.promoted(self._stream, promotion))
            except (BrokerUnavailable, UserError) as error:
                self.problem = error
        return self.problem is None

    def refused(self, champion: int | None, version: int, by: str, verdict: Verdict) -> None:
        if self.problem is None:
            message = promotion_events.promotion_refused(
                self._stream, champion=champion, version=version, by=by, verdict=verdict
            )
            try:
                tell(self._settings, message)
            except (BrokerUnavailable, UserError) as error:
                self.problem = error


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionReport:
    """What one call came to."""

    stream: str
    version: int
    champion: int | None  # before
    verdict: Verdict | None = None  # None: nothing had to be judged
    moved: Moved | None = None  # None: refused, or it was the champion already and nothing was left to do
    problem: Exception | None = None  # why an event could not be told
    superseded_by: int | None = None  # the version whose line went back to before this one's records

    @property
    def refused(self) -> bool:
        return self.verdict is not None and self.moved is None


def promote(
    registry: Registry,
    stream: str,
    at: int | str,
    *,
    by: str,
    force: bool,
    state: Path | None,
    settings: Settings,
    shadow: PairScores = no_shadow,
    tells_what_may_pass_later: bool = True,
) -> PromotionReport:
    """Judge a version, by number or alias, and make it the champion.

    1. What an earlier call left undone. If the version is the champion then, that is all; one that was begun had
       passed, or was forced, and is completed.
    2. The gate. Refused, and not to be forced: the event, and that is all.
    3. The aliases and the event, as `Promoter` numbers it.

    `UserError` where there is no such version; else as the registry, and `judge`.
    """
    teller = EventTeller(settings.kafka, stream)
    promoter = Promoter(registry, stream, teller.promoted)
    version = find_version(registry, ModelUri(name=stream, at=at))
    # 1.
    completed = promoter.complete()
    champion = registry.alias(stream, "champion")
    number = None if champion is None else champion.version
    report = PromotionReport(
        stream=stream, version=version.version, champion=number, superseded_by=version.superseded_by
    )
    if number == version.version:
        return replace(report, moved=completed, problem=teller.problem)
    verdict = None
    if promoter.begun(version) is None:
        # 2.
        verdict = _judged(registry, champion, version, state, settings, shadow)
        if not verdict.passed and not (force and verdict.may_be_forced):
            if tells_what_may_pass_later or not verdict.may_pass_later:
                teller.refused(number, version.version, by, verdict)
            return replace(report, verdict=verdict, problem=teller.problem)
    # 3.
    moved = promoter.promote(
        version,
        by=by,
        forced=verdict is not None and not verdict.passed,
        figures={} if verdict is None else verdict.figures,
    )
    return replace(report, verdict=verdict, moved=moved, problem=teller.problem)


def roll_back(registry: Registry, stream: str, *, by: str, settings: Settings) -> PromotionReport:
    """The version before the champion is the champion again. A rollback that an earlier call left undone is completed,
    and is not followed by another one. `UserError` where there is no way back; else as the registry."""
    teller = EventTeller(settings.kafka, stream)
    promoter = Promoter(registry, stream, teller.promoted)
    moved = promoter.complete()
    if moved is None or not moved.promotion.rollback:
        moved = promoter.roll_back(by=by)
    return PromotionReport(
        stream=stream,
        version=moved.promotion.to_version,
        champion=moved.promotion.from_version,
        moved=moved,
        problem=teller.problem,
    )


def _judged(
    registry: Registry,
    champion: RegisteredVersion | None,
    version: RegisteredVersion,
    state: Path | None,
    settings: Settings,
    shadow: PairScores,
) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="palimpsest-promote-") as scratch:
        return judge(
            registry,
            champion,
            version,
            state=state,
            settings=settings.promotion,
            scratch=Path(scratch),
            shadow=shadow,
        )
