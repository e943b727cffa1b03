"""What a learner tells a person (a line now and then) or a log collector (JSON lines)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TextIO

from consumers.check_report import days
from consumers.learner_process import RunReport
from consumers.log_gap import Gap
from consumers.observers import Observer
from consumers.snapshot_commit import CommitReport
from deploy.event_lines import EventLines
from deploy.exit_codes import one_line
from deploy.printable import printable
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.stream_learner import StepReport, StreamLearner

_SECONDS_BETWEEN_LINES = 2.0


class ConsoleObserver(Observer):
    """A line every two seconds while records come: rate, lag, accuracy, worst class. JSON where nobody is watching.

    Every line of JSON has `time` (seconds since 1970) and `event`: started, metrics, learning, new_class, drift,
    restructuring_requested, snapshot, snapshot_failed, accepted_gap, adopted, version, warning, stopped, failed.
    """

    def __init__(self, out: TextIO | None = None, *, as_json: bool | None = None) -> None:
        """`as_json` None: where `out` (stderr) is no terminal."""
        self._lines = EventLines(out, as_json=as_json)
        self.as_json = self._lines.as_json
        self.shows_figures = True  # False: they are drawn elsewhere while it runs (deploy/live_status.py)
        self._learner: StreamLearner | None = None
        self._told_at = time.monotonic()
        self._records_told = 0
        self._lag: int | None = None  # until the brokers were asked where the log ends
        self._evaluation: EvaluationReport | None = None

    def started(self, learner: StreamLearner, resumed: bool) -> None:
        """Where it goes on from."""
        self._learner = learner
        self._told_at, self._records_told = time.monotonic(), learner.records_consumed
        self._say(
            "started",
            f"resumed after {learner.records_consumed:,} records, {len(learner.class_names)} classes known"
            if resumed
            else "started; nothing learnt yet",
            {"resumed": resumed, "records_consumed": learner.records_consumed, "classes": len(learner.class_names)},
        )

    def metrics_shown(self, url: str) -> None:
        """Where Prometheus finds them, and a person the learner's page."""
        self._say("metrics", f"page: {url}/  metrics: {url}/metrics", {"url": f"{url}/metrics", "page": f"{url}/"})

    def turned(self, lag_records: Mapping[Partition, int], away_seconds: float | None = None) -> None:
        """Remember the lag for the next line. While it waits for a commit it looks at none."""
        if away_seconds is not None:
            self._lag = None
        elif lag_records:
            self._lag = sum(lag_records.values())

    def evaluated(self, learner: StreamLearner, report: EvaluationReport) -> None:
        """Remember the evaluation for the next line."""
        self._evaluation = report

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        """A line, if the last one is old enough."""
        update = report.update
        if update is not None and update.new_classes:
            names = ", ".join(map(printable, update.new_classes))
            self._note("new_class", f"new: {names}", {"classes": list(update.new_classes)})
        if report.drift:
            self._note("drift", "drift of the prequential error", {"records_consumed": report.records_consumed})
        if report.request is not None:
            kind, reason = str(report.request.kind), str(report.request.reason)
            self._note(
                "restructuring_requested",
                f"{kind} is asked for: {reason.replace('_', ' ')}",
                {"kind": kind, "reason": reason, "records_consumed": report.records_consumed},
            )
        if self.shows_figures and time.monotonic() - self._told_at >= _SECONDS_BETWEEN_LINES:
            self._say_figures(learner)

    def _say_figures(self, learner: StreamLearner) -> None:
        now, records = time.monotonic(), learner.records_consumed
        rate = (records - self._records_told) / max(now - self._told_at, 1e-9)
        self._told_at, self._records_told = now, records
        facts: dict[str, object] = {
            "records_consumed": records,
            "records_per_second": round(rate, 1),
            "lag_records": self._lag,
            "classes": len(learner.class_names),
            "prequential_accuracy": learner.prequential.accuracy,
        }
        lag = "-" if self._lag is None else f"{self._lag:,}"
        text = f"{records:>11,} records  {rate:>7,.0f}/s  lag {lag:>9}"
        text += f"  {len(learner.class_names):>4} classes"
        evaluation = self._evaluation
        if evaluation is not None and evaluation.average_accuracy is not None:
            facts |= {
                "average_accuracy": evaluation.average_accuracy,
                "average_forgetting": evaluation.average_forgetting,
                "worst_class": evaluation.worst_class,
            }
            text += f"  accuracy {evaluation.average_accuracy:>6.1%}"
            if evaluation.average_forgetting is not None:
                text += f"  forgetting {evaluation.average_forgetting:>6.1%}"
            if evaluation.worst_class is not None:
                text += f"  worst: {printable(evaluation.worst_class)}"
        self._say("learning", text, facts)

    def committed(self, report: CommitReport) -> None:
        """Snapshots are told to log collectors only."""
        if self.as_json:
            entry = report.entry
            self._say(
                "snapshot", "", {"generation": entry.generation, "sequence": entry.sequence, "bytes": entry.bytes}
            )

    def commit_failed(self, error: OSError) -> None:
        """Learning goes on, but somebody should look at the disk."""
        self._say(
            "snapshot_failed",
            f"warning: a snapshot could not be written: {error}; learning goes on",
            {"message": str(error)},
        )

    def gap_accepted(self, gap: Gap) -> None:
        """Somebody said that it may; it stays worth a line."""
        self._say(
            "accepted_gap",
            f"warning: {gap.why}; learning goes on from offset {gap.next_offset}",
            {
                "topic": gap.partition.topic,
                "partition": gap.partition.number,
                "expected_offset": gap.expected_offset,
                "next_offset": gap.next_offset,
                "lost_records": gap.lost_records,
                "message": gap.why,
            },
        )

    def adopted(self, learner: StreamLearner, kind: str, expected_seconds: float | None) -> None:
        """The records go back with it, so the rate counts from there."""
        again = learner.high_water - learner.records_consumed
        network = learner.learner
        assert network is not None, "what was adopted is a network"
        sub_modules, parameters = network.sub_modules_count, network.parameters_count
        self._told_at, self._records_told = time.monotonic(), learner.records_consumed
        self._note(
            "adopted",
            f"{kind} adopted (sub-modules: {sub_modules}, parameters: {parameters:,}); {again:,} records are learnt "
            "once more" + ("" if expected_seconds is None else f", in about {days(expected_seconds)}"),
            {
                "kind": kind,
                "sub_modules": sub_modules,
                "parameters": parameters,
                "records_consumed": learner.records_consumed,
                "records_to_relearn": again,
                "expected_seconds": None if expected_seconds is None else round(expected_seconds, 1),
            },
        )

    def registered(self, version: str, run_id: str) -> None:
        """A version in MLflow."""
        self._note("version", f"version {version} is in MLflow", {"version": version, "run_id": run_id})

    def warned(self, message: str) -> None:
        """A warning in full."""
        self._say("warning", f"warning: {message}", {"message": message})

    def stopped(self, report: RunReport) -> None:
        """The last line; before it the figures, where they were shown live and are gone from the screen."""
        if not self.shows_figures and self._learner is not None:
            self._say_figures(self._learner)
        self._say(
            "stopped",
            f"stopped ({report.stopped_by.replace('_', ' ')}): {report.records:,} records in {report.seconds:.1f} s, "
            f"snapshot {report.sequence}",
            {
                "stopped_by": report.stopped_by,
                "records": report.records,
                "seconds": round(report.seconds, 3),
                "snapshot": report.sequence,
                "waiting_registrations": report.waiting_registrations,
            },
        )

    def stopped_at_start(self) -> None:
        """The last line of one that was told to stop while it still waited for brokers."""
        facts: dict[str, object] = {"stopped_by": "signal", "records": 0, "seconds": 0.0}
        self._say("stopped", "stopped (signal) before it had started", facts)

    def failed(self, error: Exception, exit_code: int) -> None:
        """The last line of one that did not stop by itself."""
        message = one_line(error)
        self._say("failed", f"palimpsest: {message}", {"message": message, "exit_code": exit_code})

    def _note(self, event: str, text: str, facts: Mapping[str, object]) -> None:
        """Below the numbers, where a person who looks at these finds it."""
        self._say(event, f"{'':>13}{text}", facts)

    def _say(self, event: str, text: str, facts: Mapping[str, object]) -> None:
        self._lines.say(event, text, facts)
