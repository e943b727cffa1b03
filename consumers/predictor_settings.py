"""Settings of `palimpsest predict`."""

from __future__ import annotations

from typing import Literal

from pipeline.settings_section import Section, changeable


class PredictorSettings(Section):
    """How requests are answered."""

    latency_seconds: float = changeable(
        0.25,
        gt=0,
        why="a request that finds no queue is answered within about this; larger batches are not put together",
    )
    most_requests: int = changeable(1024, ge=1, why="answered together at most, in one transaction")
    top_k: int = changeable(3, ge=0, le=1000, why="likeliest classes in an answer; 0: the label alone")
    begins: Literal["beginning", "end"] = changeable(
        "beginning",
        why="of the requests that lie there before the first predictor ever starts: all are answered, or none",
    )
    look_seconds: float = changeable(
        2.0, gt=0, why="how often MLflow is asked for the alias; a promotion by `palimpsest promote` is heard at once"
    )
    device: str = changeable("auto", why="auto (CUDA where there is one), cpu, cuda or cuda:N")
    threads: int | None = changeable(None, ge=1, why="CPU threads of the network; none: torch's own choice")
    http: bool = changeable(True, why="false: no HTTP server, and so neither POST /predict nor /metrics")
    host: str = changeable("127.0.0.1", why="address to listen on; 0.0.0.0 answers the network")
    port: int | None = changeable(
        None, ge=0, le=65535, why="0 picks a free one; none: 9096, or a free one where something else has that"
    )
    most_body_bytes: int = changeable(8 * 1024 * 1024, ge=1, why="a larger body of POST /predict is refused (413)")
    most_http_requests: int = changeable(32, ge=1, why="answered at the same time; more are told to come again (503)")
    stale_after_seconds: float = changeable(
        60.0, gt=0, why="/livez answers 503 when the loop has not turned for so long"
    )
