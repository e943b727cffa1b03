"""What the mendings do to the client's parser, and that another version of the client is left alone."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import kafka
import pytest
from crc32c import crc32c
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from consumers import kafka_connection, kafka_python_mending
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.record import Record
from pipeline.user_error import UserError


def test_the_client_that_is_installed_is_the_one_that_is_mended() -> None:
    assert kafka.__version__ == kafka_python_mending.MENDED_VERSION
    assert kafka_python_mending.mends_this_version()


class OddName(str):
    """A header's name that encodes to what is not UTF-8."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"\xffx"


VALUE = b"value" * 100  # long enough that a batch grows smaller by compression, else it has none


def batch(names: list[str], compression: int = 0) -> bytearray:
    """A record batch as a producer makes it: one record for each header name."""
    builder = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, -1, 1_000_000)
    for offset, name in enumerate(names):
        builder.append(offset, 0, b"key", VALUE, [(name, b"\xff"), ("after", None)])
    return bytearray(builder.build())


@pytest.mark.parametrize("compression", [DefaultRecordBatch.CODEC_NONE, DefaultRecordBatch.CODEC_LZ4])
def test_header_names_of_any_bytes_are_read(compression: int) -> None:
    kafka_python_mending.mend()
    records = list(DefaultRecordBatch(batch(["ä", OddName("odd"), "ß", OddName("odd")], compression)))
    assert [record.headers for record in records] == [
        [(name, b"\xff"), ("after", None)] for name in ("ä", r"\xffx", "ß", r"\xffx")
    ]
    assert {(record.key, record.value, type(record.value)) for record in records} == {(b"key", VALUE, bytes)}


def test_a_batch_that_does_not_decompress_is_corrupt_and_says_where() -> None:
    kafka_python_mending.mend()
    broken = batch(["a"], DefaultRecordBatch.CODEC_GZIP)
    broken[DefaultRecordBatch.HEADER_STRUCT.size] ^= 0xFF  # gzip's magic number
    broken[:8] = (1234).to_bytes(8, "big")  # its first offset
    with pytest.raises(kafka_errors.CorruptRecordError, match="from offset 1234 on does not decompress"):
        list(DefaultRecordBatch(broken))


def unpacked(data: bytearray, fetch_offset: int = 0) -> Iterator[Any]:
    """As the client's fetcher would, in the way that we put in."""
    records = kafka_python_mending._partition_records()(
        fetch_offset, TopicPartition("t", 3), MemoryRecords(bytes(data)), isolation_level=IsolationLevel.READ_COMMITTED
    )
    while records:
        yield from records.take(2)
        yield records.next_fetch_offset


@pytest.mark.parametrize("compression", [DefaultRecordBatch.CODEC_NONE, DefaultRecordBatch.CODEC_LZ4])
def test_batches_are_unpacked_into_our_records(compression: int) -> None:
    kafka_python_mending.mend()
    names = ["ä", OddName("odd"), "ß"]
    found = list(unpacked(batch(["a", "b", "c"], compression)))
    assert [one for one in found if isinstance(one, Record)] == [
        Record("t", 3, offset, VALUE, b"key", ((name, b"\xff"), ("after", None)), 0)
        for offset, name in enumerate("abc")
    ]
    assert [one for one in found if not isinstance(one, Record)] == [2, 3]
    odd = [one for one in unpacked(batch(names, compression)) if isinstance(one, Record)]
    assert [record.headers[0][0] for record in odd] == ["ä", r"\xffx", "ß"]
    assert [record.offset for record in odd] == [0, 1, 2]


def test_a_fetch_may_begin_in_the_midst_of_a_batch() -> None:
    kafka_python_mending.mend()
    found = [one.offset for one in unpacked(batch(["a"] * 5), fetch_offset=3) if isinstance(one, Record)]
    assert found == [3, 4]


def test_a_batch_that_is_broken_says_so() -> None:
    kafka_python_mending.mend()
    flipped = batch(["a", "b"])
    flipped[-1] ^= 0xFF
    with pytest.raises(kafka_errors.CorruptRecordError, match="does not match its checksum"):
        list(unpacked(flipped))

    # A record too few under a sum that holds: what the client can read comes first, then it says what is wrong.
    short = batch(["a", "b"])
    short[57:61] = (3).to_bytes(4, "big")  # its number of records
    short[17:21] = crc32c(bytes(short[21:])).to_bytes(4, "big")
    records = unpacked(short)
    assert [next(records).offset for _ in range(2)] == [0, 1]
    with pytest.raises(kafka_errors.CorruptRecordError, match="invalid record structure"):
        list(records)


def test_a_peer_that_does_not_answer_the_tls_handshake_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_connection, "_PROBE_TIMEOUT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, unclosed() as left_open:
        with pytest.raises(UserError, match="takes connections but does not answer the TLS handshake"):
            kafka_connection.admin(settings_for(silent, security_protocol="SSL", connect_timeout_seconds=1))
        silent.settimeout(10)
        peer, _ = silent.accept()
        with peer:
            peer.settimeout(10)
            assert peer.recv(1), "it said hello"
    assert left_open == []


def test_a_connection_that_is_not_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_connection, "_PROBE_TIMEOUT_SECONDS", 0.3)
    with ExitStack() as stack, unclosed() as left_open:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        with pytest.raises(UserError, match=r"no broker is reachable at .* \(timed out\)"):
            kafka_connection.admin(settings_for(full, connect_timeout_seconds=1))
    assert left_open == []


def test_a_client_that_is_closed_in_the_midst_of_a_handshake_closes_its_socket() -> None:
    kafka_python_mending.mend()
    opened: list[Any] = []
    with ExitStack() as stack, unclosed() as left_open:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        silent.settimeout(10)
        settings = settings_for(silent, security_protocol="SSL", connect_timeout_seconds=60)
        options = kafka_connection.connection_options(settings) | kafka_python_mending.client_options(opened)
        options.pop("kafka_client")(**options)
        for part in opened:
            stack.callback(part.close)  # in the order in which a failed start closes them
        net, manager = opened
        net.start()
        manager.bootstrap_async(timeout_ms=60_000)
        peer = stack.enter_context(silent.accept()[0])
        peer.settimeout(10)
        assert peer.recv(1)  # its hello: it waits for ours now
        for part in reversed(opened):
            part.close()
        while peer.recv(4096):
            pass
    assert left_open == []


@pytest.mark.kafka
def test_a_silent_bootstrap_server_leaves_time_for_the_others(kafka_broker: EmbeddedKafka) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        servers = [f"127.0.0.1:{one.getsockname()[1]}" for one in silent]
        settings = KafkaSettings(
            bootstrap_servers=",".join([*servers, kafka_broker.bootstrap_servers]), connect_timeout_seconds=8
        )
        for _ in range(2):  # in which order they are tried is by chance
            with kafka_connection.admin(settings) as admin:
                assert admin.describe_cluster()["cluster_id"] == kafka_broker.cluster_id


def settings_for(peer: socket.socket, **more: Any) -> KafkaSettings:
    return KafkaSettings.model_validate({"bootstrap_servers": f"127.0.0.1:{peer.getsockname()[1]}", **more})


@contextmanager
def unclosed() -> Iterator[list[str]]:
    """What Python says of resources that nobody closed, of those that are gone by the end."""
    left_open: list[str] = []
    gc.collect()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield left_open
        gc.collect()
    left_open += [str(one.message) for one in warned if one.category is ResourceWarning]


def test_another_version_is_left_alone_with_one_line_and_still_connects() -> None:
    code = """
import kafka
kafka.__version__ = "3.9.9"
from kafka.net.inet import KafkaNetSocket
from kafka.record.default_records import DefaultRecordBatch
before = (KafkaNetSocket.sock_connect, DefaultRecordBatch._read_msg)
from consumers import kafka_connection
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.user_error import UserError
for _ in range(2):
    try:
        kafka_connection.admin(KafkaSettings(bootstrap_servers="127.0.0.1:1", connect_timeout_seconds=0.3))
    except UserError as error:
        print(error)
assert before == (KafkaNetSocket.sock_connect, DefaultRecordBatch._read_msg)
"""
    # Without our mending of it the client leaves its threads behind: the program must not wait for them.
    ran = subprocess.run(
        [sys.executable, "-c", code + "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stdout.count("no broker is reachable at 127.0.0.1:1") == 2, ran.stderr
    assert ran.stderr.count("kafka-python is 3.9.9, and known faults are mended for 3.0.12 only") == 1
