"""What a worker tells: a line now and then for a person, JSON lines where nobody is watching."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping

import click

from consumers.consolidation_job import JobReport
from deploy.exit_codes import one_line

_SECONDS_BETWEEN_LINES = 5.0


class WorkerConsole:
    """Every line of JSON has `time` (seconds since 1970) and `event`: started, requested, progress, offered, refused,
    waiting, stopped."""

    def __init__(self, *, as_json: bool | None = None) -> None:
        """`as_json` None: where stderr is no terminal."""
        self.as_json = not sys.stderr.isatty() if as_json is None else as_json
        self._told_at = time.monotonic()
        self._job: str | None = None  # the newest that was told of
        self._waits_for: str | None = None  # said once, not at every try

    def started(self, stream: str, state: str) -> None:
        self._say("started", f"waiting for what {state} asks for", {"stream": stream, "state": state})

    def requested(self, job: str, reason: str) -> None:
        if job != self._job:
            self._job, self._waits_for = job, None
            self._say("requested", f"{job} is asked for ({reason.replace('_', ' ')})", {"job": job, "reason": reason})

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
        lines = "".join(f"\n  {reason}" for reason in report.judgement.reasons)
        self._answer("offered" if accepted else "refused", said + lines, {"job": report.job, **report.as_json})

    def refused(self, job: str, why: str) -> None:
        self._answer("refused", f"{job} is refused: {why}", {"job": job, "why": why})

    def waits(self, job: str, error: Exception, seconds: float) -> None:
        """It is tried again; said again where it is something else that is in the way."""
        why = one_line(error)
        if why != self._waits_for:
            self._waits_for = why
            text = f"warning: {job} waits, and is tried again every {seconds:.0f} s: {why}"
            self._say("waiting", text, {"job": job, "why": why})

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
        line = json.dumps({"time": time.time(), "event": event, **facts}, ensure_ascii=False) if self.as_json else text
        click.echo(line, err=True)
