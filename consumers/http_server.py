"""A small HTTP/1.1 server on threads of its own: routes, a bound on bodies and on work, answers a client can read.

Outside the standard library nothing is needed for it: it stands behind whatever ends TLS, and most of what it does is a
scrape now and then.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pipeline.user_error import UserError

# A client that sends nothing for so long is let go, and with it its thread.
_SILENCE_SECONDS = 30.0
_FINISH_SECONDS = 2.0  # for a client that is still sending what was refused
_MOST_LENGTH_DIGITS = 18  # of a Content-Length


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What was asked."""

    headers: Message[str, str]  # finds a name in any case
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What is answered."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[HttpRequest], HttpAnswer]


def plain(status: int, text: str, **headers: str) -> HttpAnswer:
    """A line for a person; `Retry_After="1"` is the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpAnswer(status=status, content_type="text/plain; charset=utf-8", body=f"{text}\n".encode(), headers=named)


class HttpServer:
    """Serves `routes`, {path: {method: route}}, while it is entered. A route that raises is a bug: 500, and shown."""

    def __init__(
        self,
        routes: Mapping[str, Mapping[str, Route]],
        *,
        name: str,
        host: str,
        port: int,
        in_use: str,
        most_body_bytes: int = 0,
    ) -> None:
        """`in_use`: what to do where the address cannot be had, for the `UserError` that is raised then."""
        server = self
        self._routes = routes
        self._most_body_bytes = most_body_bytes

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = _SILENCE_SECONDS

            def handle_expect_100(self) -> bool:
                refused = server._refusal(self.headers)
                if refused is None:
                    return super().handle_expect_100()
                self._send(refused, closes=True)
                return False

            def do_GET(self) -> None:
                self._do("GET")

            def do_HEAD(self) -> None:
                self._do("GET", without_body=True)

            def do_POST(self) -> None:
                self._do("POST")

            def _do(self, method: str, *, without_body: bool = False) -> None:
                """1. The body, or why it is not read: what follows it could not be told from it then."""
                length = self.headers.get("Content-Length")
                if method == "POST" or length is not None or "Transfer-Encoding" in self.headers:
                    refused = server._refusal(self.headers)
                    if refused is not None:
                        self._send(refused, closes=True)
                        return
                body = self.rfile.read(int(length)) if length else b""
                if length and len(body) < int(length):
                    self.close_connection = True  # the client left in the midst of it
                    return
                request = HttpRequest(headers=self.headers, body=body)
                try:
                    answer = server._answer(method, self.path.partition("?")[0], request)
                except Exception:
                    server._http.handle_error(self.request, self.client_address)
                    answer = plain(500, "this is a bug: see what the process says")
                self._send(answer, without_body=without_body)

            def _send(self, answer: HttpAnswer, *, closes: bool = False, without_body: bool = False) -> None:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if closes:
                    self.send_header("Connection", "close")  # sets close_connection as well
                self.end_headers()
                if not without_body:
                    self.wfile.write(answer.body)
                if closes:
                    self._let_finish()

            def _let_finish(self) -> None:
                """Take in what the client still sends, for a moment: of a connection that is closed on unread bytes it
                sees a reset, and not the answer."""
                deadline = time.monotonic() + _FINISH_SECONDS
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_WR)
                    self.connection.settimeout(_FINISH_SECONDS)
                    while time.monotonic() < deadline and self.connection.recv(65536):
                        pass

            def log_message(self, format: str, *args: object) -> None:
                """A line for each request helps nobody."""

        try:
            self._http = _Http((host, port), Handler)
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; {in_use}") from None
        self._thread = threading.Thread(target=self._http.serve_forever, name=name, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._http.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=5)

    def _refusal(self, headers: Message[str, str]) -> HttpAnswer | None:
        """Why a body is not read."""
        lengths = set(headers.get_all("Content-Length", []))
        if "Transfer-Encoding" in headers or not lengths:
            return plain(411, "send the body's Content-Length, not chunks")
        if len(lengths) > 1:  # what stands before us may go by the other one
            return plain(400, "several Content-Lengths")
        (length,) = lengths
        if not (length.isascii() and length.isdecimal()):
            return plain(400, f"Content-Length {length[:40]!r} is no number of bytes")
        # int() raises on thousands of digits
        if len(length) > _MOST_LENGTH_DIGITS or int(length) > self._most_body_bytes:
            return plain(413, f"{length[:40]} bytes, where {self._most_body_bytes} are taken")
        return None

    def _answer(self, method: str, path: str, request: HttpRequest) -> HttpAnswer:
        methods = self._routes.get(path)
        if methods is None:
            *first, last = self._routes
            return plain(404, f"there are {', '.join(first)} and {last}")
        if method not in methods:
            return plain(405, f"{path} takes {' and '.join(methods)}", Allow=", ".join(methods))
        return methods[method](request)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        """Without the base class's look-up of the host's name, which takes seconds where no name server answers."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left before its answer is its own affair; anything else is a bug and shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]
