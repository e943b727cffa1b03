"""A stop while a connection is made: heard at once, and what is made after all is closed again."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from consumers import kafka_connection
from consumers.kafka_connection import ConnectingStopped, hearing
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.user_error import UserError

DEADLINE_SECONDS = 30.0


def stop_soon() -> threading.Event:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    return stop


@pytest.mark.parametrize("make", [kafka_connection.admin, kafka_connection.consumer, kafka_connection.producer])
def test_connecting_hears_a_stop(make: Callable[[KafkaSettings], Any]) -> None:
    with socket.socket() as mute:  # takes connections, and never says a word
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        servers = f"127.0.0.1:{mute.getsockname()[1]}"
        began = time.monotonic()
        with hearing(stop_soon()), pytest.raises(ConnectingStopped, match=f"stopped while connecting to {servers}"):
            make(KafkaSettings(bootstrap_servers=servers, connect_timeout_seconds=15.0))
        assert time.monotonic() - began < 10.0


def test_nothing_is_begun_once_a_stop_was_heard() -> None:
    stop = threading.Event()
    stop.set()
    before = set(threading.enumerate())
    with hearing(stop), pytest.raises(ConnectingStopped):
        kafka_connection.admin(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    assert set(threading.enumerate()) <= before


def test_a_client_that_comes_after_the_stop_is_closed() -> None:
    closed, may_come = threading.Event(), threading.Event()

    class Late:
        def __init__(self, **_: Any) -> None:
            assert may_come.wait(DEADLINE_SECONDS)

        def close(self) -> None:
            closed.set()

    with hearing(stop_soon()), pytest.raises(ConnectingStopped):
        kafka_connection._connect(Late, KafkaSettings(), {})
    assert not closed.is_set()
    may_come.set()
    assert closed.wait(DEADLINE_SECONDS)


def test_the_ear_is_lent_for_the_inside_only() -> None:
    outer, inner = threading.Event(), threading.Event()
    assert kafka_connection.heard_stop() is None
    with hearing(outer):
        with hearing(inner):
            assert kafka_connection.heard_stop() is inner
        assert kafka_connection.heard_stop() is outer
    assert kafka_connection.heard_stop() is None


def test_with_an_ear_errors_are_the_same() -> None:
    nobody = KafkaSettings(bootstrap_servers="127.0.0.1:1", connect_timeout_seconds=0.3)
    with hearing(threading.Event()), pytest.raises(UserError, match=r"no broker is reachable at 127\.0\.0\.1:1"):
        kafka_connection.admin(nobody)


@pytest.mark.kafka
def test_with_an_ear_a_connection_is_as_good(kafka_broker: EmbeddedKafka) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers)
    with hearing(threading.Event()), kafka_connection.admin(settings) as admin:
        assert admin.describe_cluster()["cluster_id"] == kafka_broker.cluster_id
