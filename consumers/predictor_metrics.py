"""The Prometheus metrics of a predictor. Prefix `palimpsest_`, base units; `role` is the alias that it follows."""

from __future__ import annotations

import math
import time
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumers.model_slot import ServingModel
from consumers.predictor import PredictorObserver, Turn
from consumers.process_metrics import register_process
from consumers.request_log import RequestLog
from pipeline.evaluation.shadow_scores import Role
from pipeline.record import Partition

_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_STAGE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_LAG_SECONDS = 1.0  # the lag is asked for no more often
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class PredictorMetrics(PredictorObserver):
    """Hears what the loop, the watch and the HTTP server do, from their threads."""

    def __init__(self, *, stream: str, role: Role, instance: str, looked: Path, stale_after_seconds: float) -> None:
        """`looked`: the file that the fetcher touches whenever MLflow has answered; `stale_after_seconds`: /livez's."""
        self.registry = registry = CollectorRegistry()
        self.last_turn = time.monotonic()
        self.ready = False
        self._role = role
        self._lag_shown_at = -math.inf
        self._lag_shown: set[Partition] = set()
        self._model_shown: tuple[str, str, str] | None = None
        answers = Counter(
            "palimpsest_answers_total", "Requests answered, durably.", ("role", "outcome"), registry=registry
        )
        self._answered, self._unreadable = (answers.labels(role, outcome) for outcome in ("answered", "unreadable"))
        self._given_up = Counter(
            "palimpsest_answers_given_up_total",
            "Requests of transactions that did not go through; they are answered by another try.",
            ("role",),
            registry=registry,
        ).labels(role)
        self._latency = Histogram(
            "palimpsest_answer_latency_seconds",
            "From the request's time in the log to its committed answer.",
            ("role",),
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        ).labels(role)
        stages = Histogram(
            "palimpsest_answer_duration_seconds",
            "Of one batch: the network, the transaction.",
            ("role", "stage"),
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self._predict, self._transaction = (stages.labels(role, stage) for stage in ("predict", "transaction"))
        self._batch = Histogram(
            "palimpsest_answer_batch_requests",
            "Requests that were answered together.",
            ("role",),
            buckets=_BATCH_BUCKETS,
            registry=registry,
        ).labels(role)
        self._lag = Gauge(
            "palimpsest_request_lag_records",
            "Requests behind those that were polled, of the partitions of this instance.",
            ("topic", "partition"),
            registry=registry,
        )
        self._http = Counter(
            "palimpsest_http_predictions_total", "Answers to POST /predict.", ("role", "status"), registry=registry
        )
        self._model = Gauge(
            "palimpsest_model_info", "The version that answers.", ("role", "version", "run_id"), registry=registry
        )
        self._served = Gauge(
            "palimpsest_served_version", "The number of the version that answers.", ("role",), registry=registry
        ).labels(role)
        self._swaps = Counter(
            "palimpsest_model_swaps_total", "Versions that came to answer.", ("role",), registry=registry
        ).labels(role)
        self._refused = Counter(
            "palimpsest_model_refusals_total",
            "Times a version that the alias points to could not be opened; the one before goes on.",
            ("role",),
            registry=registry,
        ).labels(role)
        Gauge(
            "palimpsest_alias_last_look_timestamp_seconds",
            "When MLflow last said what the alias points to; NaN: never.",
            ("role",),
            registry=registry,
        ).labels(role).set_function(lambda: _changed_at(looked))
        Gauge(
            "palimpsest_build_info", "What runs.", ("version", "stream", "instance", "role"), registry=registry
        ).labels(version("palimpsest"), stream, instance, role).set(1)
        register_process(registry, lambda: self.last_turn, stale_after_seconds)

    # -- the loop --------------------------------------------------------------------------------------------------

    def turned(self, log: RequestLog) -> None:
        """/livez asks when it did last. The lag is of the partitions that are this instance's now, once a second."""
        now = time.monotonic()
        self.last_turn = now
        if now - self._lag_shown_at >= _LAG_SECONDS:
            self._lag_shown_at = now
            lags = log.lag_records()
            for partition, lag in lags.items():
                self._lag.labels(partition.topic, partition.number).set(lag)
            # Only now: a scrape in between must not find nothing.
            for partition in self._lag_shown - lags.keys():
                self._lag.remove(partition.topic, partition.number)
            self._lag_shown = set(lags)

    def answered(self, turn: Turn) -> None:
        """A batch."""
        self._answered.inc(len(turn.requests) - turn.unreadable)
        self._unreadable.inc(turn.unreadable)
        self._batch.observe(len(turn.requests))
        self._predict.observe(turn.predict_seconds)
        self._transaction.observe(turn.transaction_seconds)
        for request in turn.requests:
            if request.timestamp_ms > 0:  # -1, and 0 of some clients: it has no time
                self._latency.observe(max(0.0, turn.answered_at - request.timestamp_ms / 1000))

    def given_up(self, requests: int) -> None:
        """None of them was answered."""
        self._given_up.inc(requests)

    # -- the watch -------------------------------------------------------------------------------------------------

    def serving(self, model: ServingModel, before: int | None, seconds: float) -> None:
        """It answers from the next batch on."""
        self.ready = True
        shown, before_it = (self._role, str(model.version), model.run_id or ""), self._model_shown
        self._model.labels(*shown).set(1)
        if before_it is not None and before_it != shown:  # only now: a scrape in between must not find nothing
            self._model.remove(*before_it)
        self._model_shown = shown
        self._served.set(model.version)
        self._swaps.inc()

    def version_refused(self, version: int, why: str) -> None:
        """The one before goes on."""
        self._refused.inc()

    def waits(self, why: str) -> None:
        """For the log."""

    def well(self) -> None:
        """For the log."""

    # -- HTTP ------------------------------------------------------------------------------------------------------

    def http_answered(self, status: int) -> None:
        """One POST /predict."""
        self._http.labels(self._role, str(status)).inc()


def _changed_at(file: Path) -> float:
    """Unix time in seconds."""
    try:
        return file.stat().st_mtime
    except OSError:
        return math.nan
