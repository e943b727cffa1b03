"""Puts a promotion together: what `palimpsest promote`, `palimpsest rollback` and the worker run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from consumers import promotion_events
from consumers.commit_log import BrokerUnavailable
from consumers.kafka_settings import KafkaSettings
from consumers.message_sender import tell
from consumers.record_source import SourceUnavailable
from consumers.version_teacher import find_version
from deploy.judging_versions import PairScores, judge, no_shadow
from deploy.settings import Settings
from model_store.model_uri import ModelUri
from model_store.promotion import Verdict, too_little_shadow, unsettled
from model_store.promotion_history import Promotion
from model_store.promotion_steps import Moved, Promoter
from model_store.registry import RegisteredVersion, Registry
from pipeline.evaluation.version_pair import PairScore
from pipeline.user_error import UserError

AUTOMATIC = "automatic"  # who promotes, where nobody does

# Judging takes minutes, and another one may promote meanwhile: so many champions in a row are judged against.
_MOST_CHAMPIONS = 3


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
            except (BrokerUnavailable, SourceUnavailable, UserError) as error:  # the second: a stop while connecting
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

    @property
    def promoted(self) -> bool:
        """By this call; an event alone that was missing is no promotion."""
        return self.moved is not None and self.champion != self.moved.promotion.to_version


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
    shadow_first: bool = False,
    tells_what_may_pass_later: bool = True,
) -> PromotionReport:
    """Judge a version, by number or alias, and make it the champion.

    `shadow_first`: where the gate needs the shadow's record, and that is too short yet, nothing is fetched and judged.

    1. What an earlier call left undone. If the version is the champion then, that is all; one that was begun had
       passed, or was forced, and is completed.
    2. The gate. Refused, and not to be forced: the event, and that is all. A champion that came meanwhile is one to
       judge against, too.
    3. The aliases and the event, as `Promoter` numbers it.

    `UserError` where there is no such version; else as the registry, and `judge`.
    """
    teller = EventTeller(settings.kafka, stream)
    promoter = Promoter(registry, stream, teller.promoted)
    version = find_version(registry, ModelUri(name=stream, at=at))
    # 1.
    completed = promoter.complete()
    champion, verdict = registry.alias(stream, "champion"), None
    report = PromotionReport(
        stream=stream, version=version.version, champion=_number(champion), superseded_by=version.superseded_by
    )
    if report.champion == version.version:
        return replace(report, moved=completed, problem=teller.problem)
    # 2.
    for _ in range(_MOST_CHAMPIONS):
        verdict = None
        if promoter.begun(version) is not None:
            break
        verdict = _judged(registry, champion, version, state, settings, shadow, shadow_first=shadow_first)
        champion = registry.alias(stream, "champion")
        if _number(champion) == report.champion:
            break
        report = replace(report, champion=_number(champion))
        if report.champion == version.version:
            return replace(report, problem=teller.problem)
    else:
        verdict = unsettled(_MOST_CHAMPIONS)
    if verdict is not None and not verdict.passed and not (force and verdict.may_be_forced):
        if tells_what_may_pass_later or not verdict.may_pass_later:
            teller.refused(report.champion, version.version, by, verdict)
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
    *,
    shadow_first: bool,
) -> Verdict:
    if shadow_first and settings.promotion.needs_shadow and champion is not None:
        record = shadow(champion.version, version.version)
        too_little = too_little_shadow(record, settings.promotion)
        if too_little is not None:
            return too_little

        def read(_champion: int, _challenger: int) -> PairScore | None:
            return record  # of these two: it is not read again, which takes its time

        shadow = read
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


def _number(version: RegisteredVersion | None) -> int | None:
    return None if version is None else version.version
