"""The learner's HTTP server, asked by urllib and scraped by a real Prometheus."""

from __future__ import annotations

import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from consumers.metrics import LearnerMetrics
from consumers.metrics_server import MetricsServer
from consumers.process_settings import MetricsSettings
from pipeline.user_error import UserError
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import World
from tests.prometheus_server import running_prometheus
from tests.system_package import require_program


class Process:
    """What the server asks."""

    def __init__(self) -> None:
        self.last_turn = time.monotonic()
        self.ready = False


def serve(process: Process, *, port: int = 0, registry: CollectorRegistry | None = None) -> MetricsServer:
    return MetricsServer(
        registry=registry or CollectorRegistry(),
        host="127.0.0.1",
        port=port,
        last_turn=lambda: process.last_turn,
        ready=lambda: process.ready,
        stale_after_seconds=100.0,
    )


def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type, body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_the_page_shows_the_registry_in_the_format_that_is_asked_for() -> None:
    registry = CollectorRegistry()
    Gauge("palimpsest_known_classes", "Classes.", registry=registry).set(3)
    with serve(Process(), registry=registry) as server:
        status, content_type, body = get(f"{server.url}/metrics")
        assert (status, content_type.split(";")[0]) == (200, "text/plain")
        assert "\npalimpsest_known_classes 3.0\n" in body
        _, content_type, body = get(f"{server.url}/metrics?x=1", Accept="application/openmetrics-text; version=1.0.0")
        assert content_type.split(";")[0] == "application/openmetrics-text"
        assert body.endswith("# EOF\n")


def test_livez_fails_once_the_loop_does_not_turn() -> None:
    process = Process()
    with serve(process) as server:
        assert get(f"{server.url}/livez")[::2] == (200, "alive\n")
        process.last_turn = time.monotonic() - 130.0
        status, _, said = get(f"{server.url}/livez")
        assert status == 503
        assert re.fullmatch(r"no turn of the loop for 1[3-5]\d s\n", said)


def test_readyz_waits_for_the_state() -> None:
    process = Process()
    with serve(process) as server:
        assert get(f"{server.url}/readyz")[0] == 503
        process.ready = True
        assert get(f"{server.url}/readyz")[0] == 200


def test_anything_else_is_not_found_and_says_what_there_is() -> None:
    with serve(Process()) as server:
        status, _, body = get(f"{server.url}/")
        assert (status, body) == (404, "there are /metrics, /livez and /readyz\n")


def test_a_taken_port_is_one_clear_line() -> None:
    with serve(Process()) as server:
        port = urllib.parse.urlparse(server.url).port
        assert port
        with pytest.raises(UserError, match=rf"cannot listen on 127.0.0.1:{port}: .*choose another metrics.port"):
            serve(Process(), port=port)


def test_a_scraper_that_leaves_early_harms_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    with serve(Process()) as server:
        address = urllib.parse.urlparse(server.url)
        for _ in range(5):
            with socket.create_connection((address.hostname, address.port)) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # ends in a reset
                connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert get(f"{server.url}/livez")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_the_default_address_is_not_seen_from_outside() -> None:
    assert MetricsSettings().host == "127.0.0.1"


def test_a_real_prometheus_scrapes_it_and_answers(tmp_path: Path) -> None:
    require_program("prometheus", package="prometheus")
    world = World(tmp_path / "world")
    records = digit_stream(40)
    world.write(records)
    metrics = LearnerMetrics(MetricsSettings(), stream="digits", branch="main")
    world.learn(observer=metrics)
    with serve(Process(), registry=metrics.registry) as server:
        config = {
            "global": {"scrape_interval": "200ms"},
            "scrape_configs": [
                {
                    "job_name": "palimpsest",
                    "static_configs": [{"targets": [urllib.parse.urlparse(server.url).netloc]}],
                }
            ],
        }
        with running_prometheus(tmp_path / "prometheus", config) as prometheus:
            (found,) = prometheus.wait_for('sum by (topic) (palimpsest_samples_consumed_total{partition="0"})')
    assert found.labels == {"topic": "digits.samples"}
    assert found.value == len(records)
