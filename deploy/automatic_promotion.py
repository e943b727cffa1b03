"""Promotion without a person: the worker judges each new challenger once, and promotes it where the gate passes."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from consumers.commit_log import BrokerUnavailable
from consumers.kafka_connection import hearing
from consumers.record_source import LogTruncated, SourceUnavailable
from consumers.worker_observer import WorkerObserver
from deploy.existing_registry import existing_registry, registry_errors
from deploy.exit_codes import one_line
from deploy.judging_versions import PairScores, no_shadow
from deploy.learning import chosen_tracking_uri
from deploy.promoting import AUTOMATIC, promote
from deploy.settings import Settings
from deploy.worker_console import WorkerConsole
from model_store.promotion import Verdict
from model_store.promotion_history import promotions_of
from model_store.registry import MAX_TAG_CHARACTERS, RegisteredVersion, Registry, RegistryUnavailable
from pipeline.user_error import UserError

REFUSED_TAG = "palimpsest.promotion_refused"
_MOST_REASONS = 5
_MOST_REASON_CHARACTERS = 400


class AutomaticPromotion:
    """Challenger in the registry -> champion, or a tag that says why not.

    One that was promoted before is left alone, too: somebody has rolled it back. One that nothing speaks against, but
    nothing for it either (`promotion.needs_shadow`), is looked at again; the shadow's record is asked first then, and
    the rest, which costs downloads and the state's snapshot, once that is long enough.
    """

    def __init__(
        self,
        *,
        stream: str,
        state: Path,
        settings: Settings,
        console: WorkerConsole,
        observer: WorkerObserver | None = None,
        registry: Registry | None = None,
        shadow: PairScores = no_shadow,
    ) -> None:
        """`registry` None: that of the settings, opened at the first look, since a learner may have to make it yet."""
        self._stream = stream
        self._state = state
        self._settings = settings
        self._console = console
        self._observer = observer or WorkerObserver()
        self._registry = registry
        self._shadow = shadow
        self._due = float("-inf")  # monotonic
        # each is said once, not at every look
        self._may_pass: tuple[int, tuple[str, ...]] | None = None
        self._waits_for: str | None = None

    def look(self, stop: threading.Event | None = None) -> None:
        """If it is time. MLflow or brokers that are away, a state that is not there yet: the same again, later.

        `stop` ends the reading of the shadow's topics, and nothing is judged then.
        """
        if time.monotonic() < self._due:
            return
        try:
            with registry_errors(), hearing(stop):
                self._look()
        except (RegistryUnavailable, BrokerUnavailable, SourceUnavailable, LogTruncated, UserError, OSError) as error:
            if stop is None or not stop.is_set():
                self._wait("the next promotion", error)
                # before a learner has made the registry there is nothing to promote, and nothing failed
                if self._registry is not None or not isinstance(error, UserError):
                    self._observer.promotion_ended("failed")
        # from its end: reading the shadow's record takes as long as it takes
        self._due = time.monotonic() + self._settings.promotion.look_seconds

    def _wait(self, what: str, error: Exception) -> None:
        if one_line(error) != self._waits_for:
            self._waits_for = one_line(error)
            self._console.waits(what, error, self._settings.promotion.look_seconds)

    def _look(self) -> None:
        if self._registry is None:
            self._registry = existing_registry(chosen_tracking_uri(self._settings, self._state))
        challenger = self._registry.alias(self._stream, "challenger")
        if challenger is None or challenger.superseded_by is not None or _is_judged(challenger):
            return
        report = promote(
            self._registry,
            self._stream,
            challenger.version,
            by=AUTOMATIC,
            force=False,
            state=self._state,
            settings=self._settings,
            shadow=self._shadow,
            shadow_first=True,
            tells_what_may_pass_later=False,
        )
        if report.promoted:
            self._console.promoted(challenger.version, report.champion)
            self._observer.promotion_ended("promoted")
        if report.problem is not None:
            self._wait("the event of a promotion", report.problem)
        if report.moved is not None:
            return
        if report.verdict is not None and report.verdict.may_pass_later:
            waits_for = challenger.version, report.verdict.reasons
            if waits_for != self._may_pass:
                self._may_pass = waits_for
                self._console.promotion_waits(challenger.version, report.verdict.reasons)
        elif report.verdict is not None:
            self._registry.set_tag(
                self._stream, challenger.version, REFUSED_TAG, _refused(report.champion, report.verdict)
            )
            self._console.promotion_refused(challenger.version, report.verdict.reasons)
            self._observer.promotion_ended("refused")


def _is_judged(challenger: RegisteredVersion) -> bool:
    """Refused by us, or once promoted by whomever. As long as it is the champion and an event of that is missing, it is
    not done with; one that was begun is completed."""
    stages = [promotion.stage for promotion in promotions_of(challenger)]
    is_left = "champion" in challenger.aliases and any(stage != "told" for stage in stages)
    was_promoted = any(stage != "begun" for stage in stages)
    return not is_left and (REFUSED_TAG in challenger.tags or "champion" in challenger.aliases or was_promoted)


def _refused(champion: int | None, verdict: Verdict) -> str:
    reasons = [reason[:_MOST_REASON_CHARACTERS] for reason in verdict.reasons[:_MOST_REASONS]]
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    text = json.dumps({"at": at, "champion": champion, "reasons": reasons}, ensure_ascii=False)
    return text[:MAX_TAG_CHARACTERS]
