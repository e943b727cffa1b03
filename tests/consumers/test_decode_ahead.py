"""Decoding ahead: order, bounds, idleness, seeking, faults; over the log in memory, and once over Kafka."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
import numpy as np
import pytest

from consumers import decode_ahead, topics
from consumers.decode_ahead import DecodeAhead, Idle
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.record_source import LogTruncated, SourceUnavailable
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.record import Partition, Record
from pipeline.sample import BadRecord, DeadLetterReason, Decoded, Sample
from tests.waiting import wait_until

DEADLINE_SECONDS = 30.0
P0 = Partition("s.samples", 0)


def undecodable(record: Record) -> Decoded:
    """A decoder that costs nothing."""
    return Decoded(record, None, BadRecord(DeadLetterReason.NO_LABEL, "not of interest here"))


@pytest.fixture
def log() -> InMemoryLog:
    return InMemoryLog("s.samples", partitions=2)


@pytest.fixture
def ahead_of(log: InMemoryLog) -> Iterator[Callable[..., DecodeAhead]]:
    opened: list[DecodeAhead] = []

    def open_one(source: InMemoryRecordSource | None = None, capacity_records: int = 100, **more: Any) -> DecodeAhead:
        opened.append(
            DecodeAhead(source or InMemoryRecordSource(log), undecodable, capacity_records, poll_seconds=0.02, **more)
        )
        return opened[-1]

    yield open_one
    for ahead in opened:
        ahead.close()
        ahead.close()  # a second time is no error
    assert "palimpsest-decode-ahead" not in {thread.name for thread in threading.enumerate()}


def take_until_idle(ahead: DecodeAhead) -> tuple[list[bytes | None], Idle]:
    """The values up to the first `Idle` that comes after at least one record."""
    values: list[bytes | None] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        assert time.monotonic() < deadline, values
        taken = ahead.take(0.1)
        if isinstance(taken, Idle):
            if values:
                return values, taken
        else:
            values += [decoded.record.value for decoded in taken]


def test_all_records_in_order_and_then_idle_with_the_positions(
    log: InMemoryLog, ahead_of: Callable[..., DecodeAhead]
) -> None:
    for number in range(1000):
        log.append(b"%d" % number)
    log.append_marker()
    ahead = ahead_of(capacity_records=50)
    values, idle = take_until_idle(ahead)
    assert values == [b"%d" % number for number in range(1000)]
    assert idle.positions == {P0: 1001, Partition("s.samples", 1): 0}
    assert ahead.lag_records == {P0: 0, Partition("s.samples", 1): 0}


def test_an_empty_log_is_idle_and_wakes_up(log: InMemoryLog, ahead_of: Callable[..., DecodeAhead]) -> None:
    ahead = ahead_of()
    wait_until(lambda: isinstance(ahead.take(0.1), Idle))
    log.append(b"at last")
    values, idle = take_until_idle(ahead)
    assert values == [b"at last"]
    assert idle.positions[P0] == 1


class AskedSource(InMemoryRecordSource):
    """Notes how many records each poll was for."""

    def __init__(self, log: InMemoryLog) -> None:
        super().__init__(log)
        self.asked: list[int] = []

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        self.asked.append(max_records)
        return super().poll(max_records, timeout_seconds)


def test_polls_are_for_many_records(
    log: InMemoryLog, ahead_of: Callable[..., DecodeAhead], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_ahead, "_LAG_EVERY_SECONDS", DEADLINE_SECONDS)
    for number in range(1000):
        log.append(b"%d" % number)
    source = AskedSource(log)
    values, _ = take_until_idle(ahead_of(source, capacity_records=100))
    assert values == [b"%d" % number for number in range(1000)]
    assert min(source.asked) >= 50


def test_a_slow_taker_lets_the_polling_go_on_after_a_while(
    log: InMemoryLog, ahead_of: Callable[..., DecodeAhead], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_ahead, "_LAG_EVERY_SECONDS", 0.05)
    for _ in range(500):
        log.append(b"x")
    source = AskedSource(log)
    ahead = ahead_of(source, capacity_records=100)
    ahead.start()
    wait_until(lambda: ahead.waiting_records == 100)
    taken = ahead.take(1.0)
    assert not isinstance(taken, Idle)
    assert len(taken) == 25, "less than half of what waits"
    wait_until(lambda: ahead.waiting_records == 100)
    assert source.asked == [100, 25]


def test_a_slow_taker_stops_the_polling(log: InMemoryLog, ahead_of: Callable[..., DecodeAhead]) -> None:
    for _ in range(500):
        log.append(b"x")
    source = InMemoryRecordSource(log)
    ahead = ahead_of(source, capacity_records=40)
    ahead.start()
    wait_until(lambda: ahead.waiting_records == 40)
    first = ahead.take(1.0)
    assert not isinstance(first, Idle)
    wait_until(lambda: ahead.waiting_records == 40)
    # What is decoded or taken is all that was ever polled.
    assert source.positions()[P0] == 40 + len(first)
    assert len(take_until_idle(ahead)[0]) == 500 - len(first)


def test_large_records_are_bound_by_their_bytes(log: InMemoryLog) -> None:
    """Of 20 records that decode to 1000 bytes each, 8000 bytes hold 8 (one more may be on its way)."""
    for _ in range(20):
        log.append(b"xx")
    decoded_records: list[int] = []

    def decode(record: Record) -> Decoded:
        decoded_records.append(record.offset)
        sample = Sample(x=np.zeros(998, dtype=np.uint8), kind="vector", label="a", source="s", id="1")
        return Decoded(record, sample)

    with DecodeAhead(InMemoryRecordSource(log), decode, 100, capacity_bytes=8000, poll_seconds=0.02) as ahead:
        wait_until(lambda: ahead.waiting_records == 8 and len(decoded_records) == 9)
        assert len(take_until_idle(ahead)[0]) == 20
    assert decoded_records == list(range(20))


def test_headers_count_too(log: InMemoryLog) -> None:
    for _ in range(20):
        log.append(None, headers=[("x" * 400, b"y" * 600)])
    decoded_records: list[int] = []

    def decode(record: Record) -> Decoded:
        decoded_records.append(record.offset)
        return undecodable(record)

    with DecodeAhead(InMemoryRecordSource(log), decode, 100, capacity_bytes=8000, poll_seconds=0.02) as ahead:
        wait_until(lambda: ahead.waiting_records == 8 and len(decoded_records) == 9)
        assert len(take_until_idle(ahead)[0]) == 20


def test_lag_is_what_was_not_taken(log: InMemoryLog, ahead_of: Callable[..., DecodeAhead]) -> None:
    for _ in range(30):
        log.append(b"x")
    ahead = ahead_of()
    ahead.start()
    wait_until(lambda: ahead.lag_records.get(P0) == 30)
    take_until_idle(ahead)
    assert ahead.lag_records[P0] == 0


def test_seek_drops_what_was_read_ahead(log: InMemoryLog, ahead_of: Callable[..., DecodeAhead]) -> None:
    for number in range(100):
        log.append(b"%d" % number)
    ahead = ahead_of(capacity_records=20)
    ahead.start()
    wait_until(lambda: ahead.waiting_records == 20)
    ahead.seek({P0: 90})
    assert take_until_idle(ahead)[0] == [b"%d" % number for number in range(90, 100)]
    ahead.seek({P0: 98})
    ahead.seek({P0: 97})
    assert take_until_idle(ahead)[0] == [b"97", b"98", b"99"]


def test_what_the_thread_runs_into_comes_out_of_take_after_the_records_before(
    log: InMemoryLog, ahead_of: Callable[..., DecodeAhead]
) -> None:
    for _ in range(3):
        log.append(b"x")
    ahead = ahead_of()
    values, _ = take_until_idle(ahead)
    assert len(values) == 3
    log.truncate_before(0, 9)
    with pytest.raises(LogTruncated):
        wait_until(lambda: ahead.take(0.1) is None)
    with pytest.raises(LogTruncated):
        ahead.take(0.1)


def test_a_decoder_that_fails_is_heard_of(log: InMemoryLog) -> None:
    log.append(b"x")

    def broken(record: Record) -> Decoded:
        raise ZeroDivisionError(f"a bug of ours, met at {record.offset}")

    with (
        DecodeAhead(InMemoryRecordSource(log), broken, 10, poll_seconds=0.02) as ahead,
        pytest.raises(ZeroDivisionError),
    ):
        wait_until(lambda: ahead.take(0.1) is None)


def test_partitions_that_came_are_read_without_loss_or_repeat(
    log: InMemoryLog, ahead_of: Callable[..., DecodeAhead], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(300):
        log.append(b"a%d" % number)
    ahead = ahead_of(capacity_records=20, refresh_seconds=0.02)
    ahead.start()
    wait_until(lambda: ahead.waiting_records == 20)
    p2 = Partition("s.samples", 2)
    with log.changed:  # the source sees all of it at once
        log.add_partitions(1)
        for number in range(30):
            log.append(b"c%d" % number, partition=2)
        log.truncate_before(2, 10)
    values: list[bytes | None] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(values) < 320:
        assert time.monotonic() < deadline, len(values)
        taken = ahead.take(0.1)
        values += [] if isinstance(taken, Idle) else [decoded.record.value for decoded in taken]
    assert [value for value in values if value and value.startswith(b"a")] == [b"a%d" % n for n in range(300)]
    assert [value for value in values if value and value.startswith(b"c")] == [b"c%d" % n for n in range(10, 30)]
    wait_until(lambda: ahead.lag_records.get(p2) == 0)
    told = [record.message for record in caplog.records if "new partitions" in record.message]
    assert told == ["the topic has new partitions, which are read from their beginning: s.samples-2 from offset 10"]
    ahead.seek({p2: 29})
    assert take_until_idle(ahead)[0] == [b"c29"]


def test_lag_of_a_new_partition_counts_from_its_beginning(
    log: InMemoryLog, ahead_of: Callable[..., DecodeAhead]
) -> None:
    ahead = ahead_of(refresh_seconds=0.02)
    ahead.start()
    with log.changed:
        log.add_partitions(1)
        for _ in range(30):
            log.append(b"c", partition=2)
        log.truncate_before(2, 10)
    wait_until(lambda: ahead.lag_records.get(Partition("s.samples", 2)) == 20)


def test_a_topic_made_anew_comes_out_of_take(log: InMemoryLog, ahead_of: Callable[..., DecodeAhead]) -> None:
    ahead = ahead_of(refresh_seconds=0.02)
    wait_until(lambda: isinstance(ahead.take(0.1), Idle))
    log.make_anew()
    with pytest.raises(LogTruncated, match="made anew"):
        wait_until(lambda: ahead.take(0.1) is None)


class SourceWhoseBrokersLeave(InMemoryRecordSource):
    """Polls bring nothing and questions are not answered while `away`."""

    away = False
    looks = 0

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        return [] if self.away else super().poll(max_records, timeout_seconds)

    def end_offsets(self) -> dict[Partition, int]:
        if self.away:
            raise SourceUnavailable("away")
        return super().end_offsets()

    def refresh_partitions(self) -> tuple[Partition, ...]:
        self.looks += 1
        if self.away:
            raise SourceUnavailable("away")
        return super().refresh_partitions()


def test_after_an_outage_the_topic_is_looked_at_once_more(
    log: InMemoryLog, ahead_of: Callable[..., DecodeAhead]
) -> None:
    """Who knows what was done to it meanwhile; also, a topic that was deleted looks like brokers that are away."""
    source = SourceWhoseBrokersLeave(log)
    ahead = ahead_of(source)  # by itself it would look after half a minute
    wait_until(lambda: isinstance(ahead.take(0.1), Idle))
    assert source.looks == 0
    source.away = True
    wait_until(lambda: source.looks > 1)
    log.make_anew()
    source.away = False
    with pytest.raises(LogTruncated, match="made anew"):
        wait_until(lambda: ahead.take(0.1) is None)


def test_brokers_that_are_away_are_not_idleness(
    log: InMemoryLog, ahead_of: Callable[..., DecodeAhead], caplog: pytest.LogCaptureFixture
) -> None:
    source = SourceWhoseBrokersLeave(log)
    source.away = True
    ahead = ahead_of(source)
    log.append(b"x")
    assert ahead.take(0.2) == []
    wait_until(lambda: "trying to reach them again" in caplog.text)
    assert caplog.text.count("trying to reach them again") == 1
    away_seconds = ahead.away_seconds
    assert away_seconds is not None
    assert 0 <= away_seconds < 60
    source.away = False
    assert take_until_idle(ahead)[0] == [b"x"]
    assert "answer again" in caplog.text
    assert ahead.away_seconds is None


def test_begun_at_a_known_place_it_asks_nobody_where_it_is(log: InMemoryLog) -> None:
    """A learner that went back to its place while the brokers were away must not end of it."""

    class NotToBeAsked(SourceWhoseBrokersLeave):
        def positions(self) -> dict[Partition, int]:
            if self.away:
                raise SourceUnavailable("away")
            return super().positions()

    source = NotToBeAsked(log)
    source.away = True
    log.append(b"x")
    begins_at = dict.fromkeys(log.partitions, 0)
    with DecodeAhead(source, undecodable, 100, poll_seconds=0.02, begins_at=begins_at) as ahead:
        assert ahead.take(0.1) == []
        source.away = False
        assert take_until_idle(ahead)[0] == [b"x"]


def test_closing_while_the_queue_is_full_ends_the_thread(log: InMemoryLog) -> None:
    for _ in range(100):
        log.append(b"x")
    ahead = DecodeAhead(InMemoryRecordSource(log), undecodable, 10)
    ahead.start()
    wait_until(lambda: ahead.waiting_records == 10)
    ahead.close()
    assert "palimpsest-decode-ahead" not in {thread.name for thread in threading.enumerate()}


# Over Kafka


def _write(settings: KafkaSettings, stream: str, values: list[bytes]) -> None:
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": settings.bootstrap_servers, "transactional.id": f"{stream}.writer"}
    )
    producer.init_transactions(DEADLINE_SECONDS)
    producer.begin_transaction()
    for value in values:
        producer.produce(topics.samples(stream), value)
    producer.commit_transaction(DEADLINE_SECONDS)


@pytest.mark.kafka
def test_over_kafka_idle_stands_behind_the_transactions_marker(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers)
    topics.ensure_source_topics(settings, stream_name)
    _write(settings, stream_name, [b"%d" % number for number in range(300)])
    (partition,) = topics.check_samples_topic(settings, stream_name).partitions
    with (
        KafkaRecordSource(settings, [partition]) as source,
        DecodeAhead(source, undecodable, 100, poll_seconds=0.1) as ahead,
    ):
        values, idle = take_until_idle(ahead)
        assert values == [b"%d" % number for number in range(300)]
        assert idle.positions == {partition: 301}
        assert ahead.lag_records == {partition: 0}
        ahead.seek({partition: 299})
        assert take_until_idle(ahead)[0] == [b"299"]


@pytest.mark.kafka
@pytest.mark.slow
def test_a_broker_that_goes_and_comes_back_costs_nothing_but_time(
    tmp_path_factory: pytest.TempPathFactory, stream_name: str
) -> None:
    with EmbeddedKafka(tmp_path_factory.mktemp("leaving"), heap_mb=256) as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        topics.ensure_source_topics(settings, stream_name)
        _write(settings, stream_name, [b"before"])
        (partition,) = topics.check_samples_topic(settings, stream_name).partitions
        with (
            KafkaRecordSource(settings, [partition]) as source,
            DecodeAhead(source, undecodable, 100, poll_seconds=0.1) as ahead,
        ):
            assert take_until_idle(ahead)[0] == [b"before"]
            broker.kill()
            wait_until(lambda: ahead._unavailable_since is not None)
            assert ahead.take(0.5) == [] or isinstance(ahead.take(0.0), list)
            broker.start()
            _write(settings, stream_name, [b"after"])
            assert take_until_idle(ahead)[0] == [b"after"]
