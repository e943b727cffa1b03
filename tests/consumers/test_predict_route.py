"""POST /predict over real sockets: what is answered, what is refused, and clients that leave."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from consumers import http_server
from consumers.http_server import HttpAnswer, HttpRequest, HttpServer, plain
from consumers.metrics_server import MetricsServer
from consumers.model_slot import ModelSlot, ServingModel
from consumers.predict_route import PredictRoute
from pipeline.classifier import Classifier, Prediction
from pipeline.codec.image import encode_png
from tests.consumers.fuzzed_records import JPEG, JSON, NPY, PNG, TEXT
from tests.consumers.test_predictor import npy
from tests.model_store.tiny_servable import CLASSES, payload, tiny_classifier

DEADLINE_SECONDS = 30.0
MOST_BYTES = 10_000
GOOD = payload(0.0, 1.0)
NPY_HEADER = {"Content-Type": NPY.decode()}


class World:
    def __init__(self, most_at_once: int = 4) -> None:
        self.slot = ModelSlot()
        self.statuses: list[int] = []
        self.classifier = tiny_classifier()
        self.route = PredictRoute(
            self.slot,
            stream="pets",
            role="champion",
            top_k=1,
            most_at_once=most_at_once,
            most_body_bytes=MOST_BYTES,
            answered=self.statuses.append,
        )
        self.server = MetricsServer(
            registry=CollectorRegistry(),
            host="127.0.0.1",
            port=0,
            last_turn=time.monotonic,
            ready=lambda: self.slot.model is not None,
            stale_after_seconds=100.0,
            routes=self.route.routes,
            admissions=self.route.admissions,
        )

    def serve(self, classifier: Classifier | None = None) -> None:
        self.slot.put(ServingModel(version=7, run_id="r", classifier=classifier or self.classifier))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urllib.parse.urlparse(self.server.url).netloc, timeout=DEADLINE_SECONDS)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def raw(self, sent: bytes, *, ends: bool = True) -> bytes:
        """All that comes until the server closes."""
        address = urllib.parse.urlparse(self.server.url)
        with socket.create_connection((address.hostname, address.port), timeout=DEADLINE_SECONDS) as connection:
            connection.sendall(sent)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            found = b""
            while piece := connection.recv(65536):
                found += piece
            return found


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.serve()
    with world.server:
        yield world


def predicted(world: World, body: bytes = GOOD) -> Prediction:
    (said,) = world.classifier.predict([(body, NPY.decode())])
    assert isinstance(said, Prediction)
    return said


@pytest.mark.parametrize(("first", "second"), [(0.0, 1.0), (1.0, 0.0), (-5.0, 3.25)])
def test_it_says_what_the_classifier_says(world: World, first: float, second: float) -> None:
    body = payload(first, second)
    status, headers, content = world.ask("POST", "/predict?x=1", body, {"content-TYPE": NPY.decode()})
    said = predicted(world, body)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(content) == {
        "label": said.label,
        "probability": said.probability,
        "top": [[said.label, said.probability]],
        "model": "pets",
        "version": 7,
        "role": "champion",
    }
    assert "köln".encode() in content or said.label == "no"


def test_the_model_is_named(world: World) -> None:
    status, _, content = world.ask("GET", "/model")
    assert status == 200
    assert json.loads(content) == {
        "model": "pets",
        "version": 7,
        "role": "champion",
        "run_id": "r",
        "classes": list(CLASSES),
    }


@pytest.mark.parametrize(
    ("body", "content_type", "status", "reason"),
    [
        (b"", NPY, 400, "no_payload"),
        (GOOD, b"", 415, "unknown_content_type"),
        (GOOD, b"application/x-unknown", 415, "unknown_content_type"),
        (b"no array", NPY, 422, "broken_array"),
        (b"no image", PNG, 422, "broken_image"),
        (b"{", JSON, 422, "broken_json"),
        (npy(np.zeros(3, np.float32)), NPY, 422, "wrong_shape"),
        (payload(float("inf"), 0.0), NPY, 422, "not_finite"),
    ],
)
def test_a_payload_that_cannot_be_answered_is_told_why(
    world: World, body: bytes, content_type: bytes, status: int, reason: str
) -> None:
    answered, headers, content = world.ask("POST", "/predict", body, {"Content-Type": content_type.decode()})
    assert (answered, json.loads(content)["error"]["reason"]) == (status, reason)
    assert headers["Content-Type"] == "application/json"
    assert json.loads(content)["version"] == 7
    assert world.statuses == [status]


def test_a_large_image_in_a_small_body_is_413(world: World) -> None:
    small = encode_png(np.zeros((1, 8, 8), np.uint8))
    size = b"IHDR" + struct.pack(">II", 60_000, 60_000) + small[24:29]
    body = small[:12] + size + struct.pack(">I", zlib.crc32(size)) + small[33:]
    status, _, content = world.ask("POST", "/predict", body, {"Content-Type": PNG.decode()})
    assert (status, json.loads(content)["error"]["reason"]) == (413, "image_too_large")


def post(*headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join(["POST /predict HTTP/1.1", "Host: x", *headers, "", ""]).encode("latin-1") + body


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 411),
        (["Transfer-Encoding: chunked"], 411),
        (["Transfer-Encoding: chunked", "Content-Length: 5"], 411),
        (["Content-Length: five"], 400),
        (["Content-Length: -5"], 400),
        (["Content-Length: +5"], 400),
        (["Content-Length: 5_0"], 400),
        (["Content-Length: \u00b2"], 400),
        ([f"Content-Length: {MOST_BYTES + 1}"], 413),
        ([f"Content-Length: {'9' * 5000}"], 413),
        (["Content-Length: 5", "Content-Length: 0"], 400),
    ],
)
def test_a_body_whose_end_is_not_known_is_not_read(
    world: World, headers: list[str], status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """And what follows it is not taken for a request: the connection ends."""
    answer = world.raw(post(*headers, body=b"GET /livez HTTP/1.1\r\n\r\n"))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert "Traceback" not in capfd.readouterr().err
    assert b"\r\nContent-Type: application/json\r\n" in answer
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["reason"] == {411: "length_required", 400: "bad_length", 413: "payload_too_large"}[status]
    assert error["detail"]
    assert world.statuses == [status]


def test_a_body_that_is_too_large_is_not_asked_for(world: World) -> None:
    expects = "Expect: 100-continue"
    answer = world.raw(post(expects, f"Content-Length: {MOST_BYTES + 1}"), ends=False)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer
    answer = world.raw(post(expects, f"Content-Length: {len(GOOD)}", "Content-Type: application/x-npy", body=GOOD))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("size", [MOST_BYTES + 1, 9_000_000])
def test_a_client_that_sends_too_much_without_asking_hears_why(world: World, size: int) -> None:
    """It reads the answer when it has sent all, and of a connection that was reset by then it would not get it."""
    status, _, content = world.ask("POST", "/predict", b"x" * size, NPY_HEADER)
    told = {"reason": "payload_too_large", "detail": f"{size} bytes, where {MOST_BYTES} are taken"}
    assert (status, json.loads(content)) == (413, {"error": told})


def test_paths_and_methods_that_there_are_not(world: World) -> None:
    status, _, content = world.ask("POST", "/predictions", GOOD, NPY_HEADER)
    assert (status, content) == (404, b"there are /metrics, /livez, /readyz, /predict and /model\n")
    for method, body in (("GET", None), ("PUT", GOOD), ("DELETE", None), ("BREW", None)):
        status, headers, content = world.ask(method, "/predict", body)
        assert (status, headers["Allow"], headers["Content-Type"]) == (405, "POST", "application/json")
        told = {"reason": "method_not_allowed", "detail": "/predict takes POST"}
        assert json.loads(content) == {"error": told}
    assert world.statuses == [405] * 4
    for method, body in (("POST", b"x"), ("PUT", b"x" * 100_000), ("DELETE", None)):
        status, headers, content = world.ask(method, "/metrics", body)
        assert (status, headers["Allow"], content) == (405, "GET", b"/metrics takes GET\n")
    assert world.ask("PUT", "/", GOOD)[0] == 404
    assert len(world.statuses) == 4, "only what was asked of /predict counts"


def test_what_follows_a_body_that_was_not_read_is_no_request(world: World) -> None:
    for sent in (b"PUT /predict", b"POST /predictions", b"GET /metrics"):
        body = b"GET /livez HTTP/1.1\r\n\r\n"
        answer = world.raw(sent + b" HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert answer.count(b"HTTP/1.1 ") == 1, sent
        assert b"\r\nConnection: close\r\n" in answer


def test_a_bug_is_told_in_json_and_counted(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(Classifier):
        def predict(self, payloads: Any) -> Any:
            raise KeyError("secret")

    plain_one = tiny_classifier()
    world.serve(Broken(plain_one.network, CLASSES, plain_one.spec, plain_one.input_settings))
    for _ in range(5):  # more than there are places: each is given back
        status, headers, content = world.ask("POST", "/predict", GOOD, NPY_HEADER)
        assert (status, headers["Content-Type"]) == (500, "application/json")
        assert json.loads(content)["error"]["reason"] == "internal"
        assert b"secret" not in content
    assert world.statuses == [500] * 5
    assert "KeyError: 'secret'" in capfd.readouterr().err


@pytest.mark.parametrize(("path", "status"), [("/model", 200), ("/livez", 200), ("/predict", 405), ("/", 404)])
def test_head_is_get_without_the_body(world: World, path: str, status: int) -> None:
    connection = world.connect()
    for method in ("HEAD", "GET"):
        connection.request(method, path)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == status
        assert int(answer.headers["Content-Length"]) > 0
        assert (content == b"") == (method == "HEAD")
    connection.close()


def test_one_connection_takes_many_requests(world: World) -> None:
    connection = world.connect()
    used: set[Any] = set()
    for body, status in ((GOOD, 200), (b"no array", 422), (b"", 400), (GOOD, 200)):
        connection.request("POST", "/predict", body, NPY_HEADER)
        used.add(connection.sock.getsockname())
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()
    assert len(used) == 1
    both = world.raw(post(f"Content-Length: {len(GOOD)}", "Content-Type: application/x-npy", body=GOOD) * 2)
    assert both.count(b"HTTP/1.1 200 OK") == 2


def test_clients_that_leave_harm_nobody(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    address = urllib.parse.urlparse(world.server.url)
    assert world.raw(post("Content-Length: 100", body=b"half of it")) == b""
    for sent in (post("Content-Length: 100", body=b"half"), post(f"Content-Length: {len(GOOD)}", body=GOOD), b"PO"):
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # ends in a reset
            connection.sendall(sent)
    assert world.ask("POST", "/predict", GOOD, NPY_HEADER)[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_without_a_version_it_says_to_come_again() -> None:
    world = World()
    with world.server:
        for method, path, body in (("POST", "/predict", GOOD), ("GET", "/model", None)):
            status, headers, content = world.ask(method, path, body, NPY_HEADER)
            assert (status, headers["Retry-After"]) == (503, "5")
            assert json.loads(content)["error"] == {
                "reason": "no_version",
                "detail": "model 'pets' has no champion here yet",
            }
        assert world.ask("GET", "/readyz")[0] == 503
        world.serve()
        assert world.ask("POST", "/predict", GOOD, NPY_HEADER)[0] == 200
    assert world.statuses == [503, 200]


def test_more_at_once_than_there_are_places_are_told_to_come_again() -> None:
    class Waiting(Classifier):
        def predict(self, payloads: Any) -> Any:
            entered.release()
            assert go_on.wait(DEADLINE_SECONDS)
            return super().predict(payloads)

    entered, go_on = threading.Semaphore(0), threading.Event()
    plain_one = tiny_classifier()
    world = World(most_at_once=2)
    world.serve(Waiting(plain_one.network, CLASSES, plain_one.spec, plain_one.input_settings))
    answers: list[int] = []
    with world.server:
        threads = [
            threading.Thread(target=lambda: answers.append(world.ask("POST", "/predict", GOOD, NPY_HEADER)[0]))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
            assert entered.acquire(timeout=DEADLINE_SECONDS)
        status, headers, content = world.ask("POST", "/predict", GOOD, NPY_HEADER)
        assert (status, headers["Retry-After"], json.loads(content)["error"]["reason"]) == (503, "1", "busy")
        assert world.ask("GET", "/livez")[0] == 200, "it is not kept from anything else"
        go_on.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        assert answers == [200, 200]
        assert world.ask("POST", "/predict", GOOD, NPY_HEADER)[0] == 200


def test_a_body_is_read_only_where_there_is_a_place() -> None:
    """Else as many would lie in memory as there are clients."""
    world = World(most_at_once=1)
    world.serve()
    address = urllib.parse.urlparse(world.server.url)
    headers = (f"Content-Length: {len(GOOD)}", "Content-Type: application/x-npy")
    with world.server, socket.create_connection((address.hostname, address.port), DEADLINE_SECONDS) as slow:
        slow.sendall(post("Expect: 100-continue", *headers))
        assert slow.recv(1000).startswith(b"HTTP/1.1 100 Continue")  # it has the place now
        answer = world.raw(post("Expect: 100-continue", *headers), ends=False)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"busy"' in answer
        assert b"\r\nConnection: close\r\n" in answer
        slow.sendall(GOOD)
        assert slow.recv(1000).startswith(b"HTTP/1.1 200 OK")
        with socket.create_connection((address.hostname, address.port), DEADLINE_SECONDS) as leaving:
            leaving.sendall(post("Expect: 100-continue", *headers))
            assert leaving.recv(1000).startswith(b"HTTP/1.1 100 Continue")
        wait_until(lambda: world.ask("POST", "/predict", GOOD, NPY_HEADER)[0] == 200)  # its place was given back


@pytest.mark.parametrize("sent", [b"GET /livez HTTP/1.1\r\nX: ", post("Content-Length: 5000")])
def test_a_request_that_comes_byte_by_byte_has_one_deadline(
    world: World, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_REQUEST_SECONDS", 0.5)
    address = urllib.parse.urlparse(world.server.url)
    began = time.monotonic()
    with socket.create_connection((address.hostname, address.port), DEADLINE_SECONDS) as slow:
        slow.sendall(sent)
        slow.settimeout(0.05)
        while time.monotonic() < began + 10:
            try:
                slow.sendall(b"x")
                assert slow.recv(1000) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    assert 0.4 < time.monotonic() - began < 5
    assert world.ask("POST", "/predict", GOOD, NPY_HEADER)[0] == 200


def test_more_connections_than_there_may_be_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_MOST_CONNECTIONS", 3)
    world = World()
    world.serve()
    address = urllib.parse.urlparse(world.server.url)
    with world.server:
        held = [socket.create_connection((address.hostname, address.port), DEADLINE_SECONDS) for _ in range(3)]
        for connection in held:
            connection.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        threads = threading.active_count()
        for _ in range(5):
            with socket.create_connection((address.hostname, address.port), DEADLINE_SECONDS) as one_more:
                answer = b""
                while piece := one_more.recv(1000):
                    answer += piece
            assert answer.startswith(b"HTTP/1.1 503 ")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"Content-Length: %d\r\n" % len(body) in head
        assert threading.active_count() <= threads
        for connection in held:
            connection.close()
        wait_until(lambda: livez(world) == 200)


def livez(world: World) -> int | None:
    try:
        return world.ask("GET", "/livez")[0]
    except (ConnectionError, http.client.HTTPException):
        return None


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


MEDIA_TYPES = st.sampled_from([kind.decode() for kind in (PNG, JPEG, NPY, JSON, TEXT)])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    body=st.binary(max_size=300) | st.binary(max_size=100).map(lambda tail: GOOD[:80] + tail),
    content_type=MEDIA_TYPES
    | st.tuples(MEDIA_TYPES, st.text("; =\"'charset\\\t", max_size=20)).map("".join)
    | st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40),
)
def test_no_body_and_no_content_type_is_a_bug(world: World, body: bytes, content_type: str) -> None:
    status, _, content = world.ask("POST", "/predict", body, {"Content-Type": content_type})
    assert status in (200, 400, 413, 415, 422)
    assert json.loads(content)["version"] == 7


def test_a_route_that_raises_is_500_and_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def broken(_: HttpRequest) -> HttpAnswer:
        raise KeyError("secret")

    def good(_: HttpRequest) -> HttpAnswer:
        return plain(200, "well")

    routes = {"/broken": {"GET": broken}, "/good": {"GET": good}}
    with HttpServer(routes, name="tests", host="127.0.0.1", port=0, in_use="") as server:
        for path, status in (("/broken", 500), ("/good", 200)):
            connection = http.client.HTTPConnection(urllib.parse.urlparse(server.url).netloc, timeout=DEADLINE_SECONDS)
            connection.request("GET", path)
            answer = connection.getresponse()
            assert (answer.status, b"secret" in answer.read()) == (status, False)
            connection.close()
    assert "KeyError: 'secret'" in capfd.readouterr().err
