"""The Prometheus metrics of the worker beside a learner. Prefix `palimpsest_`, base units."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumers.process_metrics import register_process
from consumers.worker_observer import JobOutcome, PromotionOutcome, WorkerObserver
from pipeline.restructuring.trigger import Kind

# Small networks take seconds, large ones on a CPU hours.
_JOB_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)


class WorkerMetrics(WorkerObserver):
    """Hears what the worker does, and keeps the numbers for the next scrape."""

    def __init__(self, *, stream: str, stale_after_seconds: float) -> None:
        self.registry = registry = CollectorRegistry()
        self.last_turn = time.monotonic()
        self.ready = False
        self._jobs = Counter(
            "palimpsest_jobs_total", "Restructurings, by what came of each try.", ("kind", "outcome"), registry=registry
        )
        self._running = Gauge("palimpsest_job_running", "1 while one is done.", ("kind",), registry=registry)
        self._duration = Histogram(
            "palimpsest_job_duration_seconds",
            "Of a try that came to its end, whatever came of it.",
            ("kind",),
            buckets=_JOB_BUCKETS,
            registry=registry,
        )
        self._promotions = Counter(
            "palimpsest_promotions_total",
            "Challengers that the worker judged by itself; failed: MLflow or brokers were away, it looks again.",
            ("outcome",),
            registry=registry,
        )
        Gauge("palimpsest_build_info", "What runs here.", ("version", "torch", "stream"), registry=registry).labels(
            version("palimpsest"), version("torch"), stream
        ).set(1)
        register_process(registry, lambda: self.last_turn, stale_after_seconds)
        # A counter that appears with its first increment hides that increment from rate().
        for kind in Kind:
            self._running.labels(str(kind))
            self._duration.labels(str(kind))
            for outcome in get_args(JobOutcome):
                self._jobs.labels(str(kind), outcome)
        for outcome in get_args(PromotionOutcome):
            self._promotions.labels(outcome)

    def turned(self) -> None:
        """/livez asks when it did last."""
        self.last_turn = time.monotonic()
        self.ready = True

    def job_begun(self, kind: Kind, broken_off: int) -> None:
        """What a process did not survive, it could not count itself."""
        self.turned()
        self._jobs.labels(str(kind), "failed").inc(broken_off)
        self._running.labels(str(kind)).set(1)

    def job_ended(self, kind: Kind, outcome: JobOutcome | None, seconds: float) -> None:
        """Counted, but for one that only goes on later."""
        self.turned()
        self._running.labels(str(kind)).set(0)
        if outcome is not None:
            self._jobs.labels(str(kind), outcome).inc()
            self._duration.labels(str(kind)).observe(seconds)

    def promotion_ended(self, outcome: PromotionOutcome) -> None:
        """One look at a challenger."""
        self.turned()
        self._promotions.labels(outcome).inc()
