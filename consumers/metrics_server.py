"""The learner's HTTP server: /metrics for Prometheus, /livez and /readyz for whoever keeps processes alive."""

from __future__ import annotations

import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipeline.user_error import UserError

Answer = tuple[int, str, bytes]  # status, content type, body


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the base class's look-up of the host's name, which takes seconds where no name server answers."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that left before its answer is its own affair; anything else is a bug and shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class MetricsServer:
    """Serves from threads of its own; a scrape never waits for the learner, nor the learner for a scrape."""

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        host: str,
        port: int,
        last_turn: Callable[[], float],
        ready: Callable[[], bool],
        stale_after_seconds: float,
    ) -> None:
        """`last_turn` is a time.monotonic() moment. Raises `UserError` where the address cannot be had."""
        self._registry = registry
        self._last_turn = last_turn
        self._ready = ready
        self._stale_after_seconds = stale_after_seconds
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, content_type, body = server._answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """A line for each scrape helps nobody."""

        try:
            self._http = _Http((host, port), Handler)
        except OSError as error:
            raise UserError(
                f"cannot show metrics on {host}:{port}: {error.strerror}; "
                "choose another metrics.port, or 0 for a free one"
            ) from None
        self._thread = threading.Thread(target=self._http.serve_forever, name="metrics", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._http.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> MetricsServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=5)

    def _answer(self, path: str, accept: str) -> Answer:
        if path == "/metrics":
            encode, content_type = choose_encoder(accept)
            return 200, content_type, encode(self._registry)
        if path == "/livez":
            silent_seconds = time.monotonic() - self._last_turn()
            alive = silent_seconds < self._stale_after_seconds
            return _plain(
                200 if alive else 503, "alive" if alive else f"no turn of the loop for {silent_seconds:.0f} s"
            )
        if path == "/readyz":
            ready = self._ready()
            return _plain(200 if ready else 503, "ready" if ready else "loading the state")
        return _plain(404, "there are /metrics, /livez and /readyz")


def _plain(status: int, text: str) -> Answer:
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()
