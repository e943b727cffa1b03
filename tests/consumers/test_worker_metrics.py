"""The numbers of the worker beside a learner."""

from __future__ import annotations

import subprocess
import time

import pytest
from prometheus_client.exposition import generate_latest

from consumers.worker_metrics import WorkerMetrics
from pipeline.restructuring.trigger import Kind
from tests.system_package import require_program


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics(stream="digits", stale_after_seconds=60.0)


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"palimpsest_{name}", labels)


def test_all_is_there_before_anything_happens(metrics: WorkerMetrics) -> None:
    for kind in ("consolidation", "expansion"):
        assert value(metrics, "job_running", kind=kind) == 0
        assert value(metrics, "job_duration_seconds_count", kind=kind) == 0
        for outcome in ("offered", "refused", "failed"):
            assert value(metrics, "jobs_total", kind=kind, outcome=outcome) == 0
    for outcome in ("promoted", "refused", "failed"):
        assert value(metrics, "promotions_total", outcome=outcome) == 0
    (build,) = (family for family in metrics.registry.collect() if family.name == "palimpsest_build_info")
    assert build.samples[0].labels["stream"] == "digits"
    assert metrics.registry.get_sample_value("process_resident_memory_bytes")


def test_a_job_runs_and_is_counted_with_its_time(metrics: WorkerMetrics) -> None:
    metrics.job_begun(Kind.EXPANSION, broken_off=0)
    assert value(metrics, "job_running", kind="expansion") == 1
    assert value(metrics, "job_running", kind="consolidation") == 0
    metrics.job_ended(Kind.EXPANSION, "offered", 4.0)
    assert value(metrics, "job_running", kind="expansion") == 0
    assert value(metrics, "jobs_total", kind="expansion", outcome="offered") == 1
    assert value(metrics, "job_duration_seconds_sum", kind="expansion") == 4.0


def test_what_earlier_processes_did_not_survive_counts_as_failed(metrics: WorkerMetrics) -> None:
    metrics.job_begun(Kind.CONSOLIDATION, broken_off=2)
    assert value(metrics, "jobs_total", kind="consolidation", outcome="failed") == 2
    metrics.job_ended(Kind.CONSOLIDATION, "failed", 1.0)
    assert value(metrics, "jobs_total", kind="consolidation", outcome="failed") == 3


def test_one_that_goes_on_later_is_not_counted(metrics: WorkerMetrics) -> None:
    metrics.job_begun(Kind.CONSOLIDATION, broken_off=0)
    metrics.job_ended(Kind.CONSOLIDATION, None, 1.0)
    assert value(metrics, "job_running", kind="consolidation") == 0
    assert value(metrics, "job_duration_seconds_count", kind="consolidation") == 0


def test_it_is_ready_from_its_first_turn_and_alive_at_each(metrics: WorkerMetrics) -> None:
    ready = [metrics.ready]
    metrics.last_turn = 0.0
    metrics.turned()
    assert [*ready, metrics.ready] == [False, True]
    assert time.monotonic() - metrics.last_turn < 60
    metrics.promotion_ended("refused")
    assert value(metrics, "promotions_total", outcome="refused") == 1


def test_promtool_finds_nothing_to_complain_about(metrics: WorkerMetrics) -> None:
    promtool = require_program("promtool", package="prometheus")
    page = generate_latest(metrics.registry)
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "", "")
