"""The worker's page, asked over HTTP."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request

import pytest

from consumers.worker_metrics import WorkerMetrics
from deploy.settings import Settings
from deploy.worker_page import worker_page
from pipeline.user_error import UserError


def settings(port: int | None = 0, **worker: object) -> Settings:
    return Settings.model_validate({"worker": {"metrics_port": port, **worker}})


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_it_is_alive_at_once_ready_from_the_first_turn_and_dead_when_it_hangs() -> None:
    given = settings(stale_after_seconds=50)
    metrics = WorkerMetrics(stream="digits", stale_after_seconds=50)
    with worker_page(given, metrics) as server:
        assert (status(f"{server.url}/livez"), status(f"{server.url}/readyz")) == (200, 503)
        metrics.turned()
        assert (status(f"{server.url}/readyz"), status(f"{server.url}/metrics")) == (200, 200)
        metrics.last_turn = time.monotonic() - 51
        assert status(f"{server.url}/livez") == 503


def test_a_port_that_was_asked_for_is_had_or_refused() -> None:
    metrics = WorkerMetrics(stream="digits", stale_after_seconds=50)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=r"choose another worker\.metrics_port, or 0 for a free one"):
            worker_page(settings(port), metrics)
