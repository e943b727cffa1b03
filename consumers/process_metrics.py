"""What every process of ours shows of itself: its CPU time and memory, and when its loop last turned."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector


def register_process(registry: CollectorRegistry, last_turn: Callable[[], float], stale_after_seconds: float) -> None:
    """`last_turn`: a time.monotonic() moment, asked for at each scrape. `stale_after_seconds`: from when on /livez says
    that the loop hangs; shown beside it, so that an alert goes by the same."""
    ProcessCollector(registry=registry)
    Gauge(
        "palimpsest_loop_last_turn_timestamp_seconds", "Unix time at which the loop last turned.", registry=registry
    ).set_function(lambda: time.time() - (time.monotonic() - last_turn()))
    Gauge(
        "palimpsest_loop_stale_after_seconds", "A loop that has not turned for so long hangs.", registry=registry
    ).set(stale_after_seconds)
