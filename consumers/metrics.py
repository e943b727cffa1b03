"""The learner's Prometheus metrics. Prefix `palimpsest_`, base units, ratios from 0 to 1."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumers.class_metrics import ClassMetrics
from consumers.log_gap import Gap
from consumers.observers import Observer
from consumers.process_metrics import register_process
from consumers.process_settings import MetricsSettings, SnapshotSettings
from consumers.snapshot_commit import CommitReport
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.restructuring.trigger import Kind, Reason
from pipeline.sample import DeadLetterReason
from pipeline.stream_learner import StepReport, StreamLearner

# An update takes 1 to 100 ms on the networks we ship; a first CUDA step or a large encoder some seconds.
_STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_COPY_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_SNAPSHOT_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Losses stay on the device until somebody looks; reading them more often than this would make the loop wait for it.
_LOSS_READ_SECONDS = 1.0


class LearnerMetrics(Observer):
    """Hears what the learner's process did (its `Observer`) and keeps the numbers for the next scrape."""

    def __init__(
        self, settings: MetricsSettings, *, stream: str, branch: str, snapshots: SnapshotSettings | None = None
    ) -> None:
        """`snapshots` None: their defaults."""
        self.registry = registry = CollectorRegistry()
        self.last_turn = time.monotonic()
        self.ready = False
        self._losses_read_at = 0.0
        self._newest_event_time_seconds = math.nan
        self._is_relearning = False
        self._caught_up_at: float | None = None  # expected, monotonic; None: nobody knows
        self._evaluated_at_records = 0  # 0: the beginning, before the first evaluation
        self._begun: set[Partition] = set()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"palimpsest_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"palimpsest_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"palimpsest_{name}", text, labels, buckets=buckets, registry=registry)

        self._consumed = counter("samples_consumed_total", "Records read from the log.", "topic", "partition")
        self._trained = counter("samples_trained_total", "Rows that an update was made of.", "source")
        self._held_out = counter("samples_held_out_total", "Records held out: never trained on.")
        self._duplicates = counter("duplicates_total", "Repeats of a record, dropped.")
        self._erased = counter("samples_erased_total", "Records of erased subjects, skipped.")
        self._gaps = counter("accepted_gaps_total", "Breaks of the log that were borne.", "topic", "partition")
        self._gap_records = counter(
            "accepted_gap_records_total", "Records that were gone before they were learnt.", "topic", "partition"
        )
        self._dead_letters = counter("dead_letters_total", "Records that cannot be learnt from.", "reason")
        self._lag = gauge("consumer_lag_records", "Records in the log after the ones read.", "topic", "partition")
        self._away = gauge("brokers_away_seconds", "How long the brokers have not answered; the lag is from before.")
        self._event_lag = gauge("event_lag_seconds", "Age of the newest record learnt, by its ce_time.")
        self._event_lag.set_function(self._event_age)  # it grows while nothing is learnt, so each scrape asks anew
        self._prequential = gauge("prequential_accuracy_ratio", "Accuracy on records before they are learnt.")
        self._average_accuracy = gauge("average_accuracy_ratio", "Mean hold-out accuracy over the known classes.")
        self._average_forgetting = gauge("average_forgetting_ratio", "Mean forgetting over classes seen before.")
        self._backward = gauge("backward_transfer_ratio", "Mean of accuracy now minus at the end of the first burst.")
        self._early = gauge("early_accuracy_gain_ratio", "Accuracy on records 2 to 50 of a class minus chance.")
        self._evaluated_at = gauge(
            "evaluation_last_timestamp_seconds", "When this process last evaluated the hold-outs."
        )
        self._unevaluated = gauge("unevaluated_records", "Records since the newest evaluation, or the beginning.")
        self._evaluation_every = gauge("evaluation_every_records", "Records between two evaluations: the setting.")
        self._known = gauge("known_classes", "Classes with a logit column.")
        self._loss = gauge("loss", "The newest update's loss.", "term")
        self._step = histogram("step_duration_seconds", "Time of one step, by stage.", _STEP_BUCKETS, "stage")
        self._snapshot = histogram("snapshot_duration_seconds", "Time to write and commit one.", _SNAPSHOT_BUCKETS)
        self._snapshot_copy = histogram(
            "snapshot_copy_duration_seconds", "Time that learning stood still to copy the state.", _COPY_BUCKETS
        )
        self._snapshot_at = gauge("snapshot_last_success_timestamp_seconds", "Unix time of the newest snapshot.")
        snapshot_every = gauge("snapshot_every_seconds", "Time between two while records come: the setting.")
        snapshot_every.set((snapshots or SnapshotSettings()).every_seconds)
        self._snapshot_failures = counter("snapshot_failures_total", "Snapshots that could not be written.")
        self._drifts = counter("drift_events_total", "Drifts detected.", "detector")
        self._requests = counter(
            "restructurings_requested_total", "Restructurings that were asked for.", "kind", "reason"
        )
        self._waiting = gauge("restructuring_waiting", "1: this kind is asked for, and nobody has answered.", "kind")
        self._restructurings = {
            Kind.CONSOLIDATION: counter("consolidations_total", "Consolidations, by what came of them.", "outcome"),
            Kind.EXPANSION: counter("expansions_total", "Expansions, by what came of them.", "outcome"),
        }
        self._relearning = gauge("relearning_records", "Records to be learnt once more after an adoption.")
        self._relearning_seconds = gauge(
            "relearning_expected_seconds", "Until an adoption is caught up with, as was expected when it was made."
        )
        self._relearning_seconds.set_function(self._expected_left)  # it runs down between the steps too
        self._registrations = gauge("registrations_waiting", "Versions that wait for MLflow.")
        self._parameters = gauge("network_parameters", "Parameters of the network.")
        self._sub_modules = gauge("sub_modules", "Sub-modules that the network's body is made of.")
        self._model = gauge("model_info", "The model in a role.", "role", "version", "run_id")
        build = gauge("build_info", "What runs here.", "version", "torch", "stream", "branch")
        build.labels(version("palimpsest"), version("torch"), stream, branch).set(1)
        # A counter that appears with its first increment hides that increment from rate().
        for reason in DeadLetterReason:
            self._dead_letters.labels(str(reason))
        for source in ("incoming", "replay"):
            self._trained.labels(source)
        for kind in Kind:
            self._waiting.labels(str(kind))
            for asked_for in Reason:
                self._requests.labels(str(kind), str(asked_for))
        for restructurings in self._restructurings.values():
            for outcome in ("adopted", "refused"):
                restructurings.labels(outcome)
        for unknown in (
            self._prequential,
            self._average_accuracy,
            self._average_forgetting,
            self._backward,
            self._early,
            self._evaluated_at,
            self._snapshot_at,
        ):
            unknown.set(math.nan)
        self._classes = ClassMetrics(settings.max_class_labels)
        registry.register(self._classes)
        register_process(registry, lambda: self.last_turn, settings.stale_after_seconds)

    # -- Observer --------------------------------------------------------------------------------------------------

    def started(self, learner: StreamLearner, resumed: bool) -> None:
        """The state is loaded and the log is being read."""
        self.last_turn = time.monotonic()
        self.ready = True
        self._evaluation_every.set(learner.settings.evaluation.every_records)
        if learner.settings.drift.detector is not None:
            self._drifts.labels(str(learner.settings.drift.detector))
        for kind in Kind:
            self._waiting.labels(str(kind)).set_function(partial(_is_asked_for, learner, kind))
        if resumed:
            self._show_relearning(learner)
            self._show_learner(learner)
            self._show_newest_evaluation(learner)

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        """Count one step. Nothing here reads from the device but the losses, at most once a second."""
        self.last_turn = time.monotonic()  # a chunk of records may be many slow updates
        batch = report.batch
        self._show_relearning(learner)
        self._show_unevaluated(learner)
        if learner.records_consumed > learner.high_water:  # else they were counted before an adoption went back
            for partition, records in batch.records_by_partition.items():
                self._consumed.labels(partition.topic, partition.number).inc(records)
            self._held_out.inc(len(batch.held_out))
            self._duplicates.inc(len(batch.duplicates))
            self._erased.inc(len(batch.erased))
            for _, problem in batch.dead:
                self._dead_letters.labels(str(problem.reason)).inc()
            if report.drift:
                self._drifts.labels(str(learner.settings.drift.detector)).inc()
            if report.request is not None:
                self._requests.labels(str(report.request.kind), str(report.request.reason)).inc()
        if batch.newest_event_time_seconds is not None:
            self._newest_event_time_seconds = batch.newest_event_time_seconds
        for stage, seconds in report.seconds.items():
            self._step.labels(stage).observe(seconds)
        update = report.update
        if update is not None:
            if learner.records_consumed > learner.high_water:
                self._trained.labels("incoming").inc(update.rows)
                self._trained.labels("replay").inc(update.replayed_rows)
            now = time.monotonic()
            if now - self._losses_read_at >= _LOSS_READ_SECONDS:
                self._losses_read_at = now
                for term, loss in update.loss.items():
                    self._loss.labels(term).set(float(loss))
                self._show_learner(learner)

    def evaluated(self, learner: StreamLearner, report: EvaluationReport) -> None:
        """Show the newest evaluation."""
        self._evaluated_at.set_to_current_time()
        self._show_evaluation(learner, report)

    def _show_newest_evaluation(self, learner: StreamLearner) -> None:
        """Of an earlier process, or of a state that was adopted: nobody knows when it was made."""
        newest = learner.forgetting.newest_report()
        self._evaluated_at_records = 0
        if newest is not None:
            self._show_evaluation(learner, newest)
        self._show_unevaluated(learner)

    def _show_evaluation(self, learner: StreamLearner, report: EvaluationReport) -> None:
        self._evaluated_at_records = report.at_records
        self._show_unevaluated(learner)
        self._average_accuracy.set(_known(report.average_accuracy))
        self._average_forgetting.set(_known(report.average_forgetting))
        self._backward.set(_known(report.backward_transfer))
        self._classes.show(report, learner.replay_counts())
        self._show_learner(learner)

    def committed(self, report: CommitReport) -> None:
        """A snapshot is durable and told."""
        self._snapshot.observe(report.write_seconds + report.commit_seconds)
        self._snapshot_copy.observe(report.copy_seconds)
        self._snapshot_at.set_to_current_time()

    def commit_failed(self, error: OSError) -> None:
        """A snapshot could not be written; its timestamp goes stale, which is what the alert looks at."""
        self._snapshot_failures.inc()

    def gap_accepted(self, gap: Gap) -> None:
        """The log has lost records, and learning goes on without them."""
        partition = (gap.partition.topic, gap.partition.number)
        self._gaps.labels(*partition).inc()
        self._gap_records.labels(*partition).inc(gap.lost_records or 0)

    def adopted(self, learner: StreamLearner, kind: str, expected_seconds: float | None) -> None:
        """The learner goes back, and on with another network."""
        self._count(kind, "adopted")
        self._caught_up_at = None if expected_seconds is None else time.monotonic() + expected_seconds
        self._show_relearning(learner)
        self._show_learner(learner)
        self._show_newest_evaluation(learner)

    def refused(self, kind: str) -> None:
        """The learner goes on without it."""
        self._count(kind, "refused")

    def _count(self, kind: str, outcome: str) -> None:
        if kind in set(Kind):  # an offer may say anything of itself
            self._restructurings[Kind(kind)].labels(outcome).inc()

    def turned(self, lag_records: Mapping[Partition, int], away_seconds: float | None = None) -> None:
        """The loop has turned: /livez asks when it did last."""
        self.last_turn = time.monotonic()
        self._away.set(away_seconds or 0.0)
        for partition, lag in lag_records.items():
            self._lag.labels(partition.topic, partition.number).set(lag)
            if partition not in self._begun:  # its counters are there before its first record
                self._begun.add(partition)
                for counter in (self._consumed, self._gaps, self._gap_records):
                    counter.labels(partition.topic, partition.number)

    def warned(self, message: str) -> None:
        """Warnings are for the log."""

    def registered(self, version_name: str, run_id: str) -> None:
        """The newest version made of this learner."""
        self._model.clear()
        self._model.labels("newest", version_name, run_id).set(1)

    def watch_registrations(self, waiting: Callable[[], int]) -> None:
        """`waiting()` is asked at each scrape, from the server's thread."""
        self._registrations.set_function(partial(_known_count, waiting))

    def _event_age(self) -> float:
        age = time.time() - self._newest_event_time_seconds
        return age if math.isnan(age) else max(0.0, age)

    def _show_relearning(self, learner: StreamLearner) -> None:
        self._is_relearning = learner.is_relearning
        self._relearning.set(max(0, learner.high_water - learner.records_consumed))

    def _show_unevaluated(self, learner: StreamLearner) -> None:
        self._unevaluated.set(max(0, learner.records_consumed - self._evaluated_at_records))

    def _expected_left(self) -> float:
        if self._caught_up_at is None:
            return math.nan if self._is_relearning else 0.0
        return max(0.0, self._caught_up_at - time.monotonic())

    def _show_learner(self, learner: StreamLearner) -> None:
        self._prequential.set(_known(learner.prequential.accuracy))
        self._early.set(_known(learner.prequential.average_early_accuracy_gain))
        self._known.set(len(learner.class_names))
        if learner.learner is not None:
            self._parameters.set(learner.learner.parameters_count)
            self._sub_modules.set(learner.learner.sub_modules_count)


def _is_asked_for(learner: StreamLearner, kind: Kind) -> bool:
    request = learner.trigger.request
    return request is not None and request.kind is kind


def _known_count(count: Callable[[], int]) -> float:
    """A disk that does not answer must not take all other series with it."""
    try:
        return count()
    except OSError:
        return math.nan


def _known(value: float | None) -> float:
    """NaN for what cannot be said yet: a gauge's own 0 would read as an accuracy of nothing, or as no forgetting."""
    return math.nan if value is None else value
