"""A small HTTP/1.1 server on threads of its own: routes, bounds on whatever a client can use up, readable answers.

Outside the standard library nothing is needed for it: it stands behind whatever ends TLS, and most of what it does is a
scrape now and then.
"""

from __future__ import annotations

import contextlib
import io
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.user_error import UserError

# For a whole request to come in, however slowly, and for its answer to be taken: then the client is let go, and with it
# its thread.
_REQUEST_SECONDS = 30.0
_ANSWER_SECONDS = 30.0
# Each has a thread.
_MOST_CONNECTIONS = 256
_FINISH_SECONDS = 2.0  # for a client that is still sending what was refused
_MOST_LENGTH_DIGITS = 18  # of a Content-Length
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 21\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\ntoo many connections\n"
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the server answers in the place of a route."""

    status: int
    reason: str  # for a program
    detail: str  # for a person
    headers: Mapping[str, str] = field(default_factory=dict)


def plain(status: int, text: str, **headers: str) -> HttpAnswer:
    """A line for a person; `Retry_After="1"` is the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpAnswer(status=status, content_type="text/plain; charset=utf-8", body=f"{text}\n".encode(), headers=named)


def _plain_refusal(refusal: Refusal) -> HttpAnswer:
    return plain(refusal.status, refusal.detail, **refusal.headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What stands before the routes of a path; as it is here before one that takes no bodies."""

    most_body_bytes: int = 0
    # Asked before a body is read, which takes memory. None: come in; then `leave` is called once there is an answer, or
    # the client has left.
    enter: Callable[[], HttpAnswer | None] = lambda: None
    leave: Callable[[], None] = lambda: None
    refused: Callable[[Refusal], HttpAnswer] = _plain_refusal  # puts it into the words of the path's other answers
    answered: Callable[[int], None] = lambda _: None  # hears the status of each


_ANYBODY = Admission()


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
        admissions: Mapping[str, Admission] | None = None,
    ) -> None:
        """`admissions`: what stands before a path. `in_use`: what to do where the address cannot be had, for the
        `UserError` that is raised then."""
        server = self
        self._routes = routes
        self._admissions = admissions or {}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                self.rfile.close()  # the connection stays open
                self._incoming = _Incoming(self.connection)
                self.rfile = io.BufferedReader(self._incoming)

            def handle_one_request(self) -> None:
                self._incoming.begin()
                self._is_asked_for_body = False
                super().handle_one_request()

            def handle_expect_100(self) -> bool:
                """The body is asked for once it is known that it will be read."""
                self._is_asked_for_body = True
                return True

            def do_HEAD(self) -> None:
                self._do("GET", without_body=True)

            def __getattr__(self, name: str) -> Callable[[], None]:
                """Every other method: one that a path does not take is told which it does, whatever its name."""
                if name.startswith("do_"):
                    return partial(self._do, name.removeprefix("do_"))
                raise AttributeError(name)

            def _do(self, method: str, *, without_body: bool = False) -> None:
                """1. What has no route, or a body whose end is not known, or that is too large.
                2. What is not let in now.
                3. The body, and the route.

                After a body that is not read the connection ends: what follows it could not be told from it.
                """
                path = self.path.partition("?")[0]
                admission = server._admissions.get(path, _ANYBODY)
                send = partial(self._send, admission=admission, without_body=without_body)
                # 1.
                refusal = server._refusal(method, path, self.headers, admission.most_body_bytes)
                if refusal is not None:
                    is_end_unknown = refusal.status not in (404, 405)
                    send(admission.refused(refusal), closes=is_end_unknown or _has_body(self.headers))
                    return
                # 2.
                not_now = admission.enter()
                if not_now is not None:
                    send(not_now, closes=_has_body(self.headers))
                    return
                # 3.
                try:
                    body = self._body()
                    if body is None:
                        return
                    answer = self._asked(server._routes[path][method], body, admission)
                finally:
                    admission.leave()
                send(answer)

            def _body(self) -> bytes | None:
                """None: the client left in the midst of it."""
                length = int(self.headers.get("Content-Length") or 0)
                if self._is_asked_for_body:
                    super().handle_expect_100()
                body = self.rfile.read(length)
                if len(body) < length:
                    self.close_connection = True
                    return None
                return body

            def _asked(self, route: Route, body: bytes, admission: Admission) -> HttpAnswer:
                try:
                    return route(HttpRequest(headers=self.headers, body=body))
                except Exception:
                    server._http.handle_error(self.request, self.client_address)
                    bug = "this is a bug: see what the process says"
                    return admission.refused(Refusal(status=500, reason="internal", detail=bug))

            def _send(
                self, answer: HttpAnswer, *, admission: Admission, without_body: bool, closes: bool = False
            ) -> None:
                admission.answered(answer.status)
                self.connection.settimeout(_ANSWER_SECONDS)
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

    def _refusal(self, method: str, path: str, headers: Message[str, str], most_body_bytes: int) -> Refusal | None:
        """Why no route is asked."""
        methods = self._routes.get(path)
        if methods is None:
            *first, last = self._routes
            return Refusal(status=404, reason="not_found", detail=f"there are {', '.join(first)} and {last}")
        if method not in methods:
            detail, allowed = f"{path} takes {' and '.join(methods)}", {"Allow": ", ".join(methods)}
            return Refusal(status=405, reason="method_not_allowed", detail=detail, headers=allowed)
        lengths = set(headers.get_all("Content-Length", []))
        if "Transfer-Encoding" in headers or (not lengths and method == "POST"):
            detail = "send the body's Content-Length, not chunks"
            return Refusal(status=411, reason="length_required", detail=detail)
        if len(lengths) > 1:  # what stands before us may go by the other one
            return Refusal(status=400, reason="bad_length", detail="several Content-Lengths")
        length = next(iter(lengths), "0")
        if not (length.isascii() and length.isdecimal()):
            detail = f"Content-Length {length[:40]!r} is no number of bytes"
            return Refusal(status=400, reason="bad_length", detail=detail)
        # int() raises on thousands of digits
        if len(length) > _MOST_LENGTH_DIGITS or int(length) > most_body_bytes:
            detail = f"{length[:40]} bytes, where {most_body_bytes} are taken"
            return Refusal(status=413, reason="payload_too_large", detail=detail)
        return None


def _has_body(headers: Message[str, str]) -> bool:
    """Or says so."""
    return "Transfer-Encoding" in headers or any(length != "0" for length in headers.get_all("Content-Length", []))


class _Incoming(io.RawIOBase):
    """What a client sends, each request by one deadline: a byte now and then would else keep its thread for ever."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = 0.0

    def begin(self) -> None:
        """Of the next request, for which may be waited as long."""
        self._deadline = time.monotonic() + _REQUEST_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        left_seconds = self._deadline - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError("the request did not come in time")
        self._connection.settimeout(left_seconds)
        return self._connection.recv_into(buffer)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._connections = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for it; where there are too many, a line, for which nobody waits."""
        if not self._connections.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.sendall(_TOO_MANY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be had
            self._connections.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def server_bind(self) -> None:
        """Without the base class's look-up of the host's name, which takes seconds where no name server answers."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left before its answer is its own affair; anything else is a bug and shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]
