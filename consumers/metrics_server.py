"""What every process of ours shows by HTTP: /metrics for Prometheus, /livez and /readyz for whoever keeps it alive."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from consumers.http_server import Admission, HttpAnswer, HttpRequest, HttpServer, Route, plain


class MetricsServer(HttpServer):
    """A scrape never waits for the loop, nor the loop for a scrape."""

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        host: str,
        port: int,
        last_turn: Callable[[], float],
        ready: Callable[[], bool],
        stale_after_seconds: float,
        not_ready: str = "loading the state",
        port_setting: str = "metrics.port",
        routes: Mapping[str, Mapping[str, Route]] | None = None,
        admissions: Mapping[str, Admission] | None = None,
    ) -> None:
        """`last_turn` is a time.monotonic() moment; `routes`: further ones, with their `admissions`. Raises
        `UserError` where the address cannot be had."""

        def metrics(request: HttpRequest) -> HttpAnswer:
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
            return HttpAnswer(status=200, content_type=content_type, body=encode(registry))

        def livez(_: HttpRequest) -> HttpAnswer:
            silent_seconds = time.monotonic() - last_turn()
            if silent_seconds < stale_after_seconds:
                return plain(200, "alive")
            return plain(503, f"no turn of the loop for {silent_seconds:.0f} s")

        def readyz(_: HttpRequest) -> HttpAnswer:
            return plain(200, "ready") if ready() else plain(503, not_ready)

        super().__init__(
            {"/metrics": {"GET": metrics}, "/livez": {"GET": livez}, "/readyz": {"GET": readyz}, **(routes or {})},
            name="metrics",
            host=host,
            port=port,
            in_use=f"choose another {port_setting}, or 0 for a free one",
            admissions=admissions,
        )
