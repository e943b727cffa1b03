"""The worker's page: /metrics, /livez and /readyz of `palimpsest restructure`."""

from __future__ import annotations

from consumers.metrics_server import MetricsServer
from consumers.worker_metrics import WorkerMetrics
from deploy.local_port import on_port
from deploy.settings import Settings

_USUAL_PORT = 9097


def worker_page(settings: Settings, metrics: WorkerMetrics) -> MetricsServer:
    """To be entered. Raises `UserError` where the port that was asked for cannot be had."""

    def on(port: int) -> MetricsServer:
        return MetricsServer(
            registry=metrics.registry,
            host=settings.worker.metrics_host,
            port=port,
            last_turn=lambda: metrics.last_turn,
            ready=lambda: metrics.ready,
            stale_after_seconds=settings.worker.stale_after_seconds,
            not_ready="the worker has not looked for a job yet",
            port_setting="worker.metrics_port",
        )

    return on_port(settings.worker.metrics_port, _USUAL_PORT, on)
