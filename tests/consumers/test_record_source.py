"""The contract of a record source, held by Kafka's and by its twin; and what only Kafka's logs have."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import confluent_kafka
import pytest
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.codec import has_snappy

from consumers import kafka_connection, kafka_record_source, topics
from consumers.acls import Acl
from consumers.kafka_record_source import KafkaRecordSource, _errors
from consumers.kafka_settings import KafkaSettings
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.record_source import LogTruncated, RecordSource, RecordUnreadable, SourceUnavailable, record_checksum
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.record import Partition, Record
from pipeline.user_error import UserError
from tests.deleted_topic import delete_topic
from tests.ended_transactions import wait_until_transactions_ended
from tests.secure_kafka import SecureBroker
from tests.waiting import wait_until

Headers = Sequence[tuple[str, bytes | None]]
DEADLINE_SECONDS = 30.0


class MemoryUnderTest:
    """A log with two partitions, in memory."""

    def __init__(self, stream: str) -> None:
        self.log = InMemoryLog(topics.samples(stream), partitions=2)

    def write(self, partition: int, values: Sequence[bytes], key: bytes | None = None, headers: Headers = ()) -> None:
        for value in values:
            self.log.append(value, key=key, headers=headers, partition=partition)

    def write_at(self, partition: int, times_ms: Sequence[int]) -> None:
        for time_ms in times_ms:
            self.log.append(b"x", partition=partition, timestamp_ms=time_ms)

    def keep(self, *, retention_ms: int, policy: str = "delete") -> None:
        self.log.retention_seconds = retention_ms / 1000 if policy == "delete" and retention_ms >= 0 else None

    def write_aborted(self, partition: int, values: Sequence[bytes]) -> None:
        for _ in (*values, "the abort marker"):
            self.log.append_marker(partition)

    def delete_before(self, partition: int, offset: int) -> None:
        self.log.truncate_before(partition, offset)

    def add_partitions(self, count: int) -> None:
        self.log.add_partitions(count)

    def make_anew(self) -> None:
        self.log.make_anew()

    def source(self) -> RecordSource:
        return InMemoryRecordSource(self.log)


class KafkaUnderTest:
    """The same on the broker, written by librdkafka."""

    def __init__(self, broker: EmbeddedKafka, stream: str) -> None:
        self.settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        self.stream = stream
        topics.ensure_source_topics(self.settings, stream, partitions=2)

    def producer(self, **config: Any) -> confluent_kafka.Producer:
        return confluent_kafka.Producer({"bootstrap.servers": self.settings.bootstrap_servers, **config})

    def write(self, partition: int, values: Sequence[bytes], key: bytes | None = None, headers: Headers = ()) -> None:
        producer = self.producer()
        for value in values:
            producer.produce(topics.samples(self.stream), value, key, partition, headers=list(headers))
        assert producer.flush(DEADLINE_SECONDS) == 0

    def write_at(self, partition: int, times_ms: Sequence[int]) -> None:
        """The producer says when each was made."""
        producer = self.producer()
        for time_ms in times_ms:
            producer.produce(topics.samples(self.stream), b"x", partition=partition, timestamp=time_ms)
        assert producer.flush(DEADLINE_SECONDS) == 0

    def keep(self, *, retention_ms: int, policy: str = "delete") -> None:
        configs = {"retention.ms": str(retention_ms), "cleanup.policy": policy}
        with kafka_connection.admin(self.settings) as admin:
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topics.samples(self.stream), configs)])

    def write_aborted(self, partition: int, values: Sequence[bytes]) -> None:
        producer = self.producer(**{"transactional.id": f"{self.stream}.aborter"})
        producer.init_transactions(DEADLINE_SECONDS)
        producer.begin_transaction()
        for value in values:
            producer.produce(topics.samples(self.stream), value, partition=partition)
        assert producer.flush(DEADLINE_SECONDS) == 0
        producer.abort_transaction(DEADLINE_SECONDS)
        wait_until_transactions_ended(self.settings, topics.samples(self.stream))

    def delete_before(self, partition: int, offset: int) -> None:
        with kafka_connection.admin(self.settings) as admin:
            admin.delete_records({TopicPartition(topics.samples(self.stream), partition): offset})

    def add_partitions(self, count: int) -> None:
        topic = topics.samples(self.stream)
        with kafka_connection.admin(self.settings) as admin:
            (described,) = admin.describe_topics([topic])
            admin.create_partitions({topic: len(described["partitions"]) + count})

    def delete(self) -> None:
        delete_topic(self.settings, topics.samples(self.stream))

    def make_anew(self) -> None:
        self.delete()
        topics.ensure_source_topics(self.settings, self.stream, partitions=2)

    def source(self) -> RecordSource:
        samples = topics.check_samples_topic(self.settings, self.stream)
        return KafkaRecordSource(self.settings, samples.partitions, samples.topic_id)


UnderTest = MemoryUnderTest | KafkaUnderTest


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest, stream_name: str) -> UnderTest:
    if request.param == "memory":
        return MemoryUnderTest(stream_name)
    return KafkaUnderTest(request.getfixturevalue("kafka_broker"), stream_name)


@pytest.fixture
def open_source(log: UnderTest) -> Iterator[Callable[[], RecordSource]]:
    opened: list[RecordSource] = []

    def open_one() -> RecordSource:
        opened.append(log.source())
        return opened[-1]

    yield open_one
    for source in opened:
        source.close()
        source.close()  # a second time is no error


def read_to_the_end(source: RecordSource, max_records: int = 7) -> list[Record]:
    """Poll until all that may be read was read."""
    records: list[Record] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while source.positions() != source.end_offsets():
        assert time.monotonic() < deadline, f"stuck at {source.positions()} of {source.end_offsets()}"
        polled = source.poll(max_records, 0.2)
        assert len(polled) <= max_records
        records += polled
    return records


def poll_nothing(source: RecordSource) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        assert source.poll(10, 0.2) == []


def values(records: Sequence[Record], partition: int) -> list[bytes | None]:
    return [record.value for record in records if record.partition == partition]


def test_reads_all_partitions_in_their_order(log: UnderTest, open_source: Callable[[], RecordSource]) -> None:
    log.write(0, [b"a%d" % n for n in range(40)])
    log.write(1, [b"b%d" % n for n in range(3)])
    source = open_source()
    p0, p1 = source.partitions
    assert (p0.number, p1.number) == (0, 1)
    records = read_to_the_end(source)
    assert values(records, 0) == [b"a%d" % n for n in range(40)]
    assert values(records, 1) == [b"b0", b"b1", b"b2"]
    assert [record.offset for record in records if record.partition == 0] == list(range(40))
    assert source.positions() == {p0: 40, p1: 3}
    assert source.poll(10, 0.05) == []


def test_hands_over_what_was_written_byte_by_byte(log: UnderTest, open_source: Callable[[], RecordSource]) -> None:
    headers: Headers = [("ce_id", b"1"), ("twice", b"x"), ("twice", b"y"), ("null", None), ("empty", b"")]
    log.write(1, [bytes(range(256))], key=b"\x00key", headers=headers)
    log.write(1, [b""])
    record, empty = read_to_the_end(open_source())
    assert (record.partition, record.offset, record.key, record.value) == (1, 0, b"\x00key", bytes(range(256)))
    assert tuple(record.headers) == tuple(headers)
    assert (empty.key, empty.value, tuple(empty.headers)) == (None, b"", ())


def test_seeks_some_partitions_and_leaves_the_others(log: UnderTest, open_source: Callable[[], RecordSource]) -> None:
    log.write(0, [b"a0", b"a1", b"a2"])
    log.write(1, [b"b0"])
    source = open_source()
    p0, p1 = source.partitions
    read_to_the_end(source)
    source.seek({p0: 1})
    assert source.positions() == {p0: 1, p1: 1}
    assert [record.value for record in read_to_the_end(source)] == [b"a1", b"a2"]
    with pytest.raises(ValueError, match="elsewhere-0"):
        source.seek({Partition("elsewhere", 0): 0})


def test_aborted_records_are_not_seen_and_positions_pass_them(
    log: UnderTest, open_source: Callable[[], RecordSource]
) -> None:
    log.write(0, [b"before"])
    log.write_aborted(0, [b"never", b"happened"])
    source = open_source()
    p0, p1 = source.partitions
    assert [record.value for record in read_to_the_end(source)] == [b"before"]
    # Records at 0, 1, 2, the abort marker at 3: read on from 4, and nothing is left that would count as lag.
    assert source.positions() == {p0: 4, p1: 0} == source.end_offsets()
    log.write(0, [b"after"])
    assert [(record.value, record.offset) for record in read_to_the_end(source)] == [(b"after", 4)]


def test_read_one_finds_the_record_and_moves_nothing(log: UnderTest, open_source: Callable[[], RecordSource]) -> None:
    log.write(0, [b"a0", b"a1", b"a2"], key=b"k", headers=[("h", b"v")])
    log.write_aborted(0, [b"never"])
    log.write(1, [b"b0"])
    source = open_source()
    p0, p1 = source.partitions
    source.seek({p0: 2})
    one = source.read_one(p0, 1)
    assert one is not None
    assert (one.offset, one.key, one.value, tuple(one.headers)) == (1, b"k", b"a1", (("h", b"v"),))
    assert source.read_one(p0, 3) is None  # aborted
    assert source.read_one(p0, 4) is None  # the marker
    assert source.read_one(p0, 5) is None  # not yet written
    assert source.positions() == {p0: 2, p1: 0}
    assert sorted(record.value or b"" for record in read_to_the_end(source)) == [b"a2", b"b0"]


def test_the_next_record_is_found_past_what_holds_none(log: UnderTest, open_source: Callable[[], RecordSource]) -> None:
    log.write(0, [b"a0", b"a1"])
    log.write_aborted(0, [b"never", b"happened"])  # offsets 2 and 3, their marker at 4
    log.write(0, [b"a5"])
    log.write(1, [b"b0"])
    log.write_aborted(1, [b"never"])
    source = open_source()
    p0, p1 = source.partitions
    source.seek({p0: 1})

    def found(partition: Partition, offset: int) -> tuple[int, bytes | None] | None:
        record = source.read_next(partition, offset)
        return None if record is None else (record.offset, record.value)

    assert [found(p0, offset) for offset in (0, 1)] == [(0, b"a0"), (1, b"a1")]
    assert [found(p0, offset) for offset in (2, 4, 5)] == [(5, b"a5")] * 3
    assert found(p0, 6) is None  # not yet written
    assert found(p1, 1) is None  # aborted, to the end
    assert source.positions() == {p0: 1, p1: 0}
    assert values(read_to_the_end(source), 0) == [b"a1", b"a5"]


def test_the_next_record_does_not_lie_before_the_beginning(
    log: UnderTest, open_source: Callable[[], RecordSource]
) -> None:
    log.write(0, [b"a0", b"a1"])
    log.delete_before(0, 1)
    source = open_source()
    p0, _ = source.partitions
    assert source.read_next(p0, 0) is None
    one = source.read_next(p0, 1)
    assert one is not None
    assert one.value == b"a1"


def test_offsets_are_found_by_the_records_own_times(log: UnderTest, open_source: Callable[[], RecordSource]) -> None:
    now_ms = int(time.time() * 1000)
    log.write_at(0, [now_ms - 9_000, now_ms - 5_000, now_ms - 1_000])
    log.write_at(1, [now_ms - 20_000])
    source = open_source()
    p0, p1 = source.partitions
    assert source.offsets_since(now_ms / 1000 - 30) == {p0: 0, p1: 0}
    assert source.offsets_since((now_ms - 5_000) / 1000) == {p0: 1, p1: 1}
    assert source.offsets_since((now_ms - 4_999) / 1000) == {p0: 2, p1: 1}
    assert source.offsets_since(now_ms / 1000 + 1) == {p0: 3, p1: 1} == source.end_offsets()
    record = source.read_next(p0, 1)
    assert record is not None
    assert record.timestamp_ms == now_ms - 5_000


def test_how_long_the_log_keeps_a_record(log: UnderTest, open_source: Callable[[], RecordSource]) -> None:
    source = open_source()
    log.keep(retention_ms=5_400_000)
    wait_until(lambda: source.retention_seconds() == 5_400)
    log.keep(retention_ms=-1)
    wait_until(lambda: source.retention_seconds() is None)
    log.keep(retention_ms=7_000)
    wait_until(lambda: source.retention_seconds() == 7)
    log.keep(retention_ms=7_000, policy="compact")
    wait_until(lambda: source.retention_seconds() is None)


def test_reading_one_of_each_partition_holds_none_of_them_up(
    log: UnderTest, open_source: Callable[[], RecordSource]
) -> None:
    """As a start does it, before it seeks to where the state ends."""
    for number in (0, 1):
        log.write(number, [b"%d" % n for n in range(30)])
    source = open_source()
    p0, p1 = source.partitions
    for _ in range(3):
        for partition, offset in ((p0, 19), (p1, 9)):
            one = source.read_one(partition, offset)
            assert one is not None
            assert one.offset == offset
    source.seek({p0: 20, p1: 10})
    records = read_to_the_end(source)
    assert values(records, 0) == [b"%d" % n for n in range(20, 30)]
    assert values(records, 1) == [b"%d" % n for n in range(10, 30)]


def test_what_retention_deleted_is_an_error_not_a_jump(log: UnderTest, open_source: Callable[[], RecordSource]) -> None:
    log.write(0, [b"a%d" % n for n in range(5)])
    log.delete_before(0, 3)
    source = open_source()
    p0, p1 = source.partitions
    assert source.beginning_offsets() == {p0: 3, p1: 0}
    assert source.read_one(p0, 2) is None
    with pytest.raises(LogTruncated):
        poll_nothing(source)
    source.seek(source.beginning_offsets())
    assert [record.value for record in read_to_the_end(source)] == [b"a3", b"a4"]


def test_a_tail_that_was_lost_is_an_error_too(log: UnderTest, open_source: Callable[[], RecordSource]) -> None:
    log.write(0, [b"a0"])
    source = open_source()
    source.seek({source.partitions[0]: 7})  # the state has read up to 7, the log ends at 1
    with pytest.raises(LogTruncated):
        poll_nothing(source)


def refresh_until_some_came(source: RecordSource) -> tuple[Partition, ...]:
    """A topic that has just grown is described as it was for a moment."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        new = source.refresh_partitions()
        if new:
            return new
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_partitions_that_came_are_read_from_their_beginning(
    log: UnderTest, open_source: Callable[[], RecordSource]
) -> None:
    log.write(0, [b"a%d" % n for n in range(20)])
    log.write(1, [b"b0"])
    source = open_source()
    p0, p1 = source.partitions
    first = source.poll(7, 5.0)  # some of what the client holds already is not handed over yet
    assert source.refresh_partitions() == ()
    log.add_partitions(2)
    new = refresh_until_some_came(source)
    p2, p3 = (Partition(p0.topic, 2), Partition(p0.topic, 3))
    assert new == (p2, p3)
    assert source.partitions == (p0, p1, p2, p3)
    assert {source.positions()[p2], source.positions()[p3], source.beginning_offsets()[p3]} == {0}
    assert source.refresh_partitions() == ()
    log.write(3, [b"d0", b"d1"])
    records = [*first, *read_to_the_end(source)]
    assert values(records, 0) == [b"a%d" % n for n in range(20)]
    assert values(records, 1) == [b"b0"]
    assert (values(records, 2), values(records, 3)) == ([], [b"d0", b"d1"])
    source.seek({p3: 1})
    assert [record.value for record in read_to_the_end(source)] == [b"d1"]
    one = source.read_one(p3, 0)
    assert one is not None
    assert one.value == b"d0"


def test_a_new_partition_whose_front_was_deleted_stands_at_its_beginning(
    log: UnderTest, open_source: Callable[[], RecordSource]
) -> None:
    source = open_source()
    log.add_partitions(1)
    with_all = log.source()
    with contextlib.closing(with_all):
        log.write(2, [b"c0", b"c1", b"c2"])
        log.delete_before(2, 2)
        wait_until(lambda: list(with_all.beginning_offsets().values()) == [0, 0, 2])
    (p2,) = refresh_until_some_came(source)
    assert source.positions()[p2] == 2
    assert [record.value for record in read_to_the_end(source)] == [b"c2"]


def test_a_topic_that_was_made_anew_is_another_log(log: UnderTest, open_source: Callable[[], RecordSource]) -> None:
    log.write(0, [b"a0"])
    source = open_source()
    assert [record.value for record in read_to_the_end(source)] == [b"a0"]
    log.make_anew()
    log.write(0, [b"of another log"] * 3)

    def look() -> bool:
        source.refresh_partitions()
        return False

    with pytest.raises(LogTruncated, match="made anew"):
        wait_until(look)  # the brokers may not have heard of it yet


def test_a_tail_lost_and_written_anew_past_the_position_is_no_continuation() -> None:
    """In memory; Kafka's brokers have to be killed for it (test_broker_faults.py)."""
    log = MemoryUnderTest("s")
    log.write(0, [b"a%d" % n for n in range(5)])
    source = log.source()
    p0, _ = source.partitions
    read_to_the_end(source)
    log.log.lose_tail(0, 5)  # nothing of what was read
    log.write(0, [b"a5"])
    assert [record.value for record in read_to_the_end(source)] == [b"a5"]
    log.log.lose_tail(0, 3)
    log.write(0, [b"new"] * 9)
    for _ in range(2):
        with pytest.raises(LogTruncated, match="lost its tail"):
            source.poll(10, 0.0)
    source.seek({p0: 3})
    assert len(read_to_the_end(source)) == 9


def test_the_checksum_sees_every_byte_and_no_position() -> None:
    def checksum(
        key: bytes | None = b"k", value: bytes | None = b"v", headers: Headers = (("h", b"x"),), offset: int = 0
    ) -> str:
        return record_checksum(
            Record(topic="t", partition=0, offset=offset, value=value, key=key, headers=headers, timestamp_ms=offset)
        )

    others = [
        checksum(key=None),
        checksum(key=b""),
        checksum(value=None),
        checksum(value=b""),
        checksum(key=b"kv", value=b""),
        checksum(headers=()),
        checksum(headers=(("h", None),)),
        checksum(headers=(("h", b""),)),
        checksum(headers=(("hx", b""),)),
        checksum(headers=(("h", b"x"), ("h", b"x"))),
    ]
    assert len({checksum(), *others}) == 1 + len(others)
    assert checksum(offset=9) == checksum()
    # Two lengths of -1, and nothing else: `printf '\\377%.0s' $(seq 16) | sha256sum`.
    assert checksum(key=None, value=None, headers=()) == (
        "5ac6a5945f16500911219129984ba8b387a06f24fe383ce4e81a73294065461b"
    )


# What only Kafka's logs have


@pytest.mark.kafka
@pytest.mark.parametrize(
    "compression",
    [
        "none",
        "gzip",
        pytest.param("snappy", marks=pytest.mark.skipif(not has_snappy(), reason="python-snappy is not installed")),
        "lz4",
        "zstd",
    ],
)
def test_what_librdkafka_wrote_reads_well(kafka_broker: EmbeddedKafka, stream_name: str, compression: str) -> None:
    log = KafkaUnderTest(kafka_broker, stream_name)
    producer = log.producer(
        **{"compression.type": compression, "linger.ms": 50, "transactional.id": stream_name, "batch.size": 4_000_000}
    )
    producer.init_transactions(DEADLINE_SECONDS)
    expected = []
    for number in range(6):
        producer.begin_transaction()
        batch = [(b"%d-%d-" % (number, n)) * 500 for n in range(30)]
        for value in batch:
            producer.produce(topics.samples(stream_name), value, partition=0, headers=[("ce_label", b"seven")])
        if number % 2:
            assert producer.flush(DEADLINE_SECONDS) == 0
            producer.abort_transaction(DEADLINE_SECONDS)
        else:
            producer.commit_transaction(DEADLINE_SECONDS)
            expected += batch
    wait_until_transactions_ended(log.settings, topics.samples(stream_name))
    with log.source() as source:
        records = read_to_the_end(source, max_records=50)
    assert [record.value for record in records] == expected
    assert {record.header("ce_label") for record in records} == {b"seven"}


@pytest.mark.kafka
def test_a_topic_that_was_deleted_is_not_taken_for_brokers_that_are_away_for_long(
    kafka_broker: EmbeddedKafka, stream_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = KafkaUnderTest(kafka_broker, stream_name)
    with log.source() as source:
        source.refresh_partitions()
        log.delete()

        def look() -> bool:
            with contextlib.suppress(SourceUnavailable):
                source.refresh_partitions()
            return False

        monkeypatch.setattr(kafka_record_source, "_MISSING_IS_DELETED_SECONDS", 0.2)
        with pytest.raises(LogTruncated, match="was deleted while it was read"):
            wait_until(look)


@pytest.mark.kafka
def test_without_an_id_the_topic_of_the_first_look_is_ours(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    log = KafkaUnderTest(kafka_broker, stream_name)
    with KafkaRecordSource(log.settings, topics.check_samples_topic(log.settings, stream_name).partitions) as source:
        log.make_anew()

        def is_seen() -> bool:
            with contextlib.suppress(SourceUnavailable):
                source.refresh_partitions()
                return True
            return False

        wait_until(is_seen)
        log.write(0, [b"x"])
        assert [record.value for record in read_to_the_end(source)] == [b"x"]
    with KafkaRecordSource(log.settings, source.partitions, "another-id") as other, pytest.raises(LogTruncated):
        other.refresh_partitions()


@pytest.mark.kafka
def test_an_open_transaction_holds_the_end_back(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    log = KafkaUnderTest(kafka_broker, stream_name)
    log.write(0, [b"before"])
    producer = log.producer(**{"transactional.id": stream_name})
    producer.init_transactions(DEADLINE_SECONDS)
    producer.begin_transaction()
    producer.produce(topics.samples(stream_name), b"not yet", partition=0)
    assert producer.flush(DEADLINE_SECONDS) == 0
    log.write(0, [b"behind it"])
    with log.source() as source:
        p0 = source.partitions[0]
        assert [record.value for record in read_to_the_end(source)] == [b"before"]
        assert source.end_offsets()[p0] == 1
        producer.commit_transaction(DEADLINE_SECONDS)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while source.end_offsets()[p0] == 1:
            assert time.monotonic() < deadline
        assert [record.value for record in read_to_the_end(source)] == [b"not yet", b"behind it"]


@pytest.mark.kafka
def test_a_record_larger_than_a_fetch_reads_well(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    log = KafkaUnderTest(kafka_broker, stream_name)
    large = bytes(range(256)) * (6 * 4096)  # 6 MiB
    producer = log.producer(**{"message.max.bytes": 8_000_000})
    producer.produce(topics.samples(stream_name), large, partition=0)
    assert producer.flush(DEADLINE_SECONDS) == 0
    with log.source() as source:
        (record,) = read_to_the_end(source)
    assert record.value == large


class OddName(str):
    """A header's name that is not UTF-8: only what it encodes to differs."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"caf\xe9"


@pytest.mark.kafka
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_header_name_that_is_not_utf8_is_read_escaped(
    kafka_broker: EmbeddedKafka, stream_name: str, compression: str | None
) -> None:
    log = KafkaUnderTest(kafka_broker, stream_name)
    producer = kafka_connection.producer(log.settings, linger_ms=200, compression_type=compression)
    for number in range(3):
        name = OddName("cafe") if number == 1 else "caf\xe9"
        headers = [(name, b"\xff"), ("ce_label", b"seven")]
        producer.send(topics.samples(stream_name), value=b"%d" % number, headers=headers, partition=0)
    producer.close()
    with log.source() as source:
        records = read_to_the_end(source)
    assert [record.value for record in records] == [b"0", b"1", b"2"]
    assert [record.headers[0] for record in records] == [(n, b"\xff") for n in ("café", r"caf\xe9", "café")]
    assert {record.header("ce_label") for record in records} == {b"seven"}
    assert len(record_checksum(records[1])) == 64  # nothing in the name that cannot be written


@pytest.mark.kafka
def test_what_cannot_be_read_is_one_line_with_its_place(
    kafka_broker: EmbeddedKafka, stream_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = KafkaUnderTest(kafka_broker, stream_name)
    log.write(0, [b"a0"])
    log.write(1, [b"b0"])
    producer = log.producer(**{"compression.type": "zstd"})
    producer.produce(topics.samples(stream_name), b"x" * 10_000, partition=1)
    assert producer.flush(DEADLINE_SECONDS) == 0

    def broken(_payload: bytes) -> bytes:
        raise RuntimeError("unknown frame descriptor")

    monkeypatch.setattr("kafka.record.default_records.zstd_decode", broken)
    with log.source() as source, pytest.raises(RecordUnreadable, match="unknown frame descriptor") as raised:
        read_to_the_end(source)
    assert str(raised.value).startswith(f"{topics.samples(stream_name)}-1 offset 1 cannot be read")
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, LogTruncated)  # ends the process as that does


@pytest.mark.kafka
def test_a_codec_that_is_not_installed_is_named(
    kafka_broker: EmbeddedKafka, stream_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = KafkaUnderTest(kafka_broker, stream_name)
    producer = log.producer(**{"compression.type": "snappy"})
    producer.produce(topics.samples(stream_name), b"x" * 10_000, partition=0)
    assert producer.flush(DEADLINE_SECONDS) == 0
    monkeypatch.setattr("kafka.codec.snappy", None)
    with log.source() as source, pytest.raises(UserError, match="python-snappy"):
        read_to_the_end(source)


def test_what_is_not_allowed_is_named_with_the_line_that_allows_it() -> None:
    with (
        pytest.raises(
            UserError, match=r"do not allow this user Read on topic s\.samples; have the ACL added: kafka-acl"
        ),
        _errors("s.samples"),
    ):
        raise kafka_errors.TopicAuthorizationFailedError


@pytest.mark.kafka
def test_whoever_may_not_see_the_retention_is_told_so(secure_broker: SecureBroker, stream_name: str) -> None:
    topics.ensure_source_topics(secure_broker.plain, stream_name)
    name = topics.samples(stream_name)
    secure_broker.make_user("reads-only", [Acl(resource="topic", name=name, operations=("Read",))])
    settings = KafkaSettings.model_validate(secure_broker.section("SCRAM-SHA-512", "reads-only"))
    with (
        KafkaRecordSource(settings, [Partition(name, 0)]) as source,
        pytest.raises(UserError, match=f"do not allow this user DescribeConfigs on topic {name}"),
    ):
        source.retention_seconds()
    with KafkaRecordSource(secure_broker.plain, [Partition(name, 0)]) as source:
        assert source.retention_seconds() == 7 * 24 * 3600
