"""The one file that draws: what a learner tells a person (a line now and then) or a log collector (JSON lines)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TextIO

import click

from consumers.observers import SilentObserver
from consumers.snapshot_commit import CommitReport
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.stream_learner import StepReport, StreamLearner

_SECONDS_BETWEEN_LINES = 2.0


class ConsoleObserver(SilentObserver):
    """One line every two seconds while records come: rate, lag, accuracy, worst class. JSON where nobody is watching."""

    def __init__(self, out: TextIO | None = None, *, as_json: bool | None = None) -> None:
        self._out = out or sys.stderr
        self._as_json = not self._out.isatty() if as_json is None else as_json
        self._told_at = time.monotonic()
        self._records_told = 0
        self._lag = 0
        self._evaluation: EvaluationReport | None = None

    def started(self, learner: StreamLearner, resumed: bool) -> None:
        """Where it goes on from."""
        self._records_told = learner.records_consumed
        self._say(
            "started",
            f"{'resumed after' if resumed else 'started; '}{f' {learner.records_consumed} records' if resumed else 'nothing learnt yet'}",
            {"resumed": resumed, "records_consumed": learner.records_consumed, "classes": len(learner.class_names)},
        )

    def turned(self, lag_records: Mapping[Partition, int]) -> None:
        """Remember the lag for the next line."""
        self._lag = sum(lag_records.values())

    def evaluated(self, learner: StreamLearner, report: EvaluationReport) -> None:
        """Remember the evaluation for the next line."""
        self._evaluation = report

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        """A line, if the last one is old enough."""
        update = report.update
        if update is not None and update.new_classes:
            names = ", ".join(update.new_classes)
            self._say("new_class", f"new: {names}", {"classes": list(update.new_classes)})
        if report.drift:
            self._say("drift", "drift of the prequential error", {"records_consumed": report.records_consumed})
        now = time.monotonic()
        if now - self._told_at < _SECONDS_BETWEEN_LINES:
            return
        rate = (report.records_consumed - self._records_told) / (now - self._told_at)
        self._told_at, self._records_told = now, report.records_consumed
        facts: dict[str, object] = {
            "records_consumed": report.records_consumed,
            "records_per_second": round(rate, 1),
            "lag_records": self._lag,
            "classes": len(learner.class_names),
            "prequential_accuracy": learner.prequential.accuracy,
        }
        text = f"{report.records_consumed:>9,} records  {rate:>7,.0f}/s  lag {self._lag:,}  {len(learner.class_names)} classes"
        evaluation = self._evaluation
        if evaluation is not None and evaluation.average_accuracy is not None:
            facts |= {
                "average_accuracy": evaluation.average_accuracy,
                "average_forgetting": evaluation.average_forgetting,
                "worst_class": evaluation.worst_class,
            }
            text += f"  accuracy {evaluation.average_accuracy:.1%}"
            if evaluation.average_forgetting is not None:
                text += f"  forgetting {evaluation.average_forgetting:.1%}"
            if evaluation.worst_class is not None:
                text += f"  worst {evaluation.worst_class}"
        self._say("learning", text, facts)

    def committed(self, report: CommitReport) -> None:
        """Snapshots are told to log collectors only."""
        if self._as_json:
            entry = report.entry
            self._say(
                "snapshot", "", {"generation": entry.generation, "sequence": entry.sequence, "bytes": entry.bytes}
            )

    def commit_failed(self, error: OSError) -> None:
        """Learning goes on, but somebody should look at the disk."""
        self._say(
            "snapshot_failed", f"a snapshot could not be written: {error}; learning goes on", {"error": str(error)}
        )

    def warned(self, message: str) -> None:
        """A warning in full."""
        self._say("warning", f"warning: {message}", {"message": message})

    def _say(self, event: str, text: str, facts: Mapping[str, object]) -> None:
        line = json.dumps({"time": time.time(), "event": event, **facts}, ensure_ascii=False) if self._as_json else text
        click.echo(line, file=self._out)
