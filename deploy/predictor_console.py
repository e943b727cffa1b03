"""What a predictor tells: a line now and then for a person, JSON lines where nobody is watching."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TextIO

from consumers.model_slot import ServingModel
from consumers.predictor import PredictorObserver, PredictReport, Turn
from deploy.event_lines import EventLines
from deploy.exit_codes import one_line

_SECONDS_BETWEEN_LINES = 10.0


class PredictorConsole(PredictorObserver):
    """Every line of JSON has `time` (seconds since 1970) and `event`: started, serving, version_refused, waiting,
    well, answered, stopped."""

    def __init__(self, out: TextIO | None = None, *, as_json: bool | None = None) -> None:
        """As `EventLines`."""
        self._lines = EventLines(out, as_json=as_json)
        self.as_json = self._lines.as_json
        self._lock = threading.Lock()  # the loop and the watch speak
        self._told_at = time.monotonic()
        self._since = 0

    def started(self, *, stream: str, role: str, instance: str, source: str, output: str, url: str | None) -> None:
        text = f"instance {instance} answers {source} on {output} as {role} of {stream}"
        where = "" if url is None else f"; {url}/predict, /metrics"
        facts = {"stream": stream, "role": role, "instance": instance, "input": source, "output": output, "url": url}
        self._say("started", text + where, facts)

    def serving(self, model: ServingModel, before: int | None, seconds: float) -> None:
        was = "" if before is None else f", was {before}"
        classes = len(model.classifier.class_names)
        text = f"serving version {model.version}{was} ({classes} classes, loaded in {seconds:.2f} s)"
        facts = {"version": model.version, "before": before, "run_id": model.run_id, "seconds": seconds}
        self._say("serving", text, facts)

    def version_refused(self, version: int, why: str) -> None:
        why = one_line(why)
        text = f"warning: version {version} is refused; whichever answered before goes on: {why}"
        self._say("version_refused", text, {"version": version, "why": why})

    def waits(self, why: str) -> None:
        why = one_line(why)
        self._say("waiting", f"warning: {why}", {"why": why})

    def well(self) -> None:
        """What the alias points to is had again."""
        self._say("well", "MLflow answers, and what the alias points to is here again", {})

    def answered(self, turn: Turn) -> None:
        """A line every few seconds."""
        self._since += len(turn.requests)
        now = time.monotonic()
        seconds = now - self._told_at
        if seconds >= _SECONDS_BETWEEN_LINES:
            count, self._since, self._told_at = self._since, 0, now
            text = f"  {count:,} answered, {count / seconds:,.0f}/s, by version {turn.version}"
            self._say("answered", text, {"answers": count, "seconds": seconds, "version": turn.version})

    def stopped_at_start(self) -> None:
        """By a signal, before the group was joined."""
        self._say(
            "stopped", "stopped (signal) before it began", {"stopped_by": "signal", "answered": 0, "unreadable": 0}
        )

    def stopped(self, report: PredictReport) -> None:
        unreadable = f", {report.unreadable:,} of them unreadable" if report.unreadable else ""
        self._say(
            "stopped",
            f"stopped ({report.stopped_by}): {report.answered:,} requests answered{unreadable}",
            {"stopped_by": report.stopped_by, "answered": report.answered, "unreadable": report.unreadable},
        )

    def _say(self, event: str, text: str, facts: Mapping[str, object]) -> None:
        with self._lock:
            self._lines.say(event, text, facts)
