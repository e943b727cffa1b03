"""What a worker tells: a line now and then for a person, JSON lines where nobody is watching."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from consumers.restructuring_job import JobReport
from deploy.event_lines import EventLines
from deploy.exit_codes import one_line
from deploy.job_lines import job_lines
from pipeline.restructuring.trigger import Kind

_SECONDS_BETWEEN_LINES = 5.0


class WorkerConsole:
    """Every line of JSON has `time` (seconds since 1970) and `event`: started, metrics, requested, progress, offered,
    refused, waiting, promoted, promotion_refused, promotion_waits, stopped."""

    def __init__(self, *, as_json: bool | None = None) -> None:
        """`as_json` None: where stderr is no terminal."""
        self._lines = EventLines(as_json=as_json)
        self.as_json = self._lines.as_json
        self._told_at = time.monotonic()
        self._job: str | None = None  # the newest that was told of
        self._waits_for: str | None = None  # said once, not at every try

    def started(self, stream: str, state: str) -> None:
        self._say("started", f"waiting for what {state} asks for", {"stream": stream, "state": state})

    def metrics_shown(self, url: str) -> None:
        """Where Prometheus finds them."""
        self._say("metrics", f"metrics: {url}/metrics", {"url": f"{url}/metrics"})

    def requested(self, job: str, kind: Kind, reason: str) -> None:
        if job != self._job:
            self._job, self._waits_for = job, None
            text = f"{job} is asked for ({reason.replace('_', ' ')})"
            self._say("requested", text, {"job": job, "kind": kind, "reason": reason})

    def progress(self, stage: str, done: int, total: int) -> None:
        """A line every few seconds."""
        now = time.monotonic()
        if now - self._told_at >= _SECONDS_BETWEEN_LINES:
            self._told_at = now
            self._say("progress", f"  {stage}: {done:,} of {total:,}", {"stage": stage, "done": done, "total": total})

    def answered(self, report: JobReport) -> None:
        """Offered, or worse than what there is."""
        accepted = report.judgement.accepted
        said = f"{report.job} is {'offered' if accepted else 'not offered'}, after {report.seconds:.0f} s"
        lines = "".join(f"\n  {line}" for line in job_lines(report))
        facts = {"job": report.job, "kind": report.kind, **report.as_json}
        self._answer("offered" if accepted else "refused", said + lines, facts)

    def refused(self, job: str, kind: Kind, why: str) -> None:
        self._answer("refused", f"{job} is refused: {why}", {"job": job, "kind": kind, "why": why})

    def waits(self, job: str, error: Exception, seconds: float) -> None:
        """It is tried again; said again where it is something else that is in the way."""
        why = one_line(error)
        if why != self._waits_for:
            self._waits_for = why
            text = f"warning: {job} waits, and is tried again every {seconds:.0f} s: {why}"
            self._say("waiting", text, {"job": job, "why": why})

    def promoted(self, version: int, champion: int | None) -> None:
        """By itself; `champion`: the one before."""
        before = "" if champion is None else f" in the place of {champion}"
        self._say(
            "promoted", f"version {version} is promoted{before}", {"version": version, "champion_before": champion}
        )

    def promotion_refused(self, version: int, reasons: Sequence[str]) -> None:
        text = f"version {version} is not promoted: {reasons[0]}"
        self._say("promotion_refused", text, {"version": version, "reasons": list(reasons)})

    def promotion_waits(self, version: int, reasons: Sequence[str]) -> None:
        """Nothing speaks against it, and not enough for it yet."""
        text = f"version {version} is not promoted yet: {reasons[0]}"
        self._say("promotion_waits", text, {"version": version, "reasons": list(reasons)})

    def stopped(self, stopped_by: str, offered: int, refused: int) -> None:
        self._say(
            "stopped",
            f"stopped ({stopped_by}): {offered} offered, {refused} refused",
            {"stopped_by": stopped_by, "offered": offered, "refused": refused},
        )

    def _answer(self, event: str, text: str, facts: Mapping[str, object]) -> None:
        self._job = self._waits_for = None
        self._say(event, text, facts)

    def _say(self, event: str, text: str, facts: Mapping[str, object]) -> None:
        self._lines.say(event, text, facts)
