"""The contract of a request log, held by Kafka's and by its twin; and Kafka's beside brokers and members that go."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import confluent_kafka
import pytest
from kafka import OffsetAndMetadata, TopicPartition

from consumers import kafka_connection, topics
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_request_log import KafkaRequestLog, check_instance_name
from consumers.kafka_settings import KafkaSettings
from consumers.memory_record_source import InMemoryLog
from consumers.memory_request_log import InMemoryRequestLog, InMemoryRequests
from consumers.record_source import LogTruncated, read_records
from consumers.request_log import PredictorFenced, RequestLog
from consumers.topics import topic_partitions
from deploy.embedded_kafka import EmbeddedKafka
from model_store.fault_points import on_fault_point
from model_store.snapshot import OutboxMessage
from pipeline.record import Record
from pipeline.user_error import UserError
from tests.ended_transactions import wait_until_transactions_ended
from tests.waiting import wait_until

DEADLINE_SECONDS = 60.0


class MemoryUnderTest:
    def __init__(self, stream: str) -> None:
        self.log = InMemoryLog(topics.requests(stream), partitions=2)
        self.requests = InMemoryRequests(self.log)

    def ask(self, *values: bytes, partition: int = 0) -> None:
        for value in values:
            self.log.append(value, partition=partition)

    def ask_in_vain(self, partition: int) -> None:
        self.log.append_marker(partition)

    def member(self, instance: str) -> RequestLog:
        return InMemoryRequestLog(self.requests, instance)

    def answers(self) -> list[bytes | None]:
        return [answer.value for answer in self.requests.answers]


class KafkaUnderTest:
    def __init__(self, broker: EmbeddedKafka, stream: str) -> None:
        self.stream = stream
        self.settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        with kafka_connection.admin(self.settings) as admin:
            admin.create_topics({topics.requests(stream): {"num_partitions": 2, "replication_factor": 1}})
            admin.wait_for_topics([topics.requests(stream)])
        topics.ensure_answers_topic(self.settings, topics.predictions(stream), requests=topics.requests(stream))
        self._producer = kafka_connection.producer(self.settings)

    def ask(self, *values: bytes, partition: int = 0) -> None:
        for value in values:
            self._producer.send(topics.requests(self.stream), value, partition=partition).get(30)

    def ask_in_vain(self, partition: int) -> None:
        """A transaction that is aborted."""
        producer = self.open_transaction(partition)
        producer.abort_transaction(DEADLINE_SECONDS)

    def open_transaction(self, partition: int) -> confluent_kafka.Producer:
        values = {"bootstrap.servers": self.settings.bootstrap_servers, "transactional.id": self.stream}
        producer = confluent_kafka.Producer(values)
        producer.init_transactions(DEADLINE_SECONDS)
        producer.begin_transaction()
        producer.produce(topics.requests(self.stream), b"in vain", partition=partition)
        assert producer.flush(DEADLINE_SECONDS) == 0
        return producer

    def member(self, instance: str) -> KafkaRequestLog:
        log = KafkaRequestLog(
            self.settings,
            stream=self.stream,
            role="champion",
            instance=instance,
            topic=topics.requests(self.stream),
            begins_at_end=False,
        )
        log.start()
        return log

    def answers(self) -> list[bytes | None]:
        wait_until_transactions_ended(self.settings, topics.predictions(self.stream))
        _, partitions = topic_partitions(self.settings, topics.predictions(self.stream))
        with KafkaRecordSource(self.settings, partitions) as source:
            found = read_records(source, source.beginning_offsets(), source.end_offsets())
            return [record.value for record in found]

    def close(self) -> None:
        self._producer.close()


Under = MemoryUnderTest | KafkaUnderTest


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def under(request: pytest.FixtureRequest, stream_name: str) -> Iterator[Under]:
    if request.param == "memory":
        yield MemoryUnderTest(stream_name)
        return
    kafka = KafkaUnderTest(request.getfixturevalue("kafka_broker"), stream_name)
    yield kafka
    kafka.close()


def answer_to(under: Under, records: list[Record]) -> list[OutboxMessage]:
    name = under.log.topic if isinstance(under, MemoryUnderTest) else topics.predictions(under.stream)
    return [OutboxMessage(topic=name, key=b"one partition", value=b"to " + (record.value or b"")) for record in records]


def polled(log: RequestLog, count: int = 1, most: int = 100) -> list[Record]:
    """Of one poll that gave as many at least: what comes in two would have to be answered in between."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        records = log.poll(most, 0.2)
        if records:
            assert len(records) >= count
            return records
    raise AssertionError("no request came")


def serve(under: Under, log: RequestLog, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not until():
        assert time.monotonic() < deadline
        records = log.poll(100, 0.1)
        if records:
            log.answer(answer_to(under, records))


def go_on(under: Under, log: RequestLog, records: list[Record]) -> None:
    """As a predictor does that does not know yet."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        log.answer(answer_to(under, records))
        records = log.poll(100, 0.1)


def test_requests_are_answered_once_and_in_order(under: Under) -> None:
    under.ask(b"a", b"b", b"c", partition=1)
    with under.member("one") as log:
        records = polled(log, 1, most=2)
        assert [record.value for record in records] == [b"a", b"b"]
        assert log.answer(answer_to(under, records))
        serve(under, log, lambda: len(under.answers()) == 3)
        assert set(log.lag_records().values()) <= {0}
    assert under.answers() == [b"to a", b"to b", b"to c"]
    with under.member("one") as log:
        under.ask(b"d")
        assert [record.value for record in polled(log)] == [b"d"]


def test_a_member_is_at_its_end_when_it_has_joined_and_polled_all_that_is_there(under: Under) -> None:
    under.ask(b"a", b"b", partition=0)
    under.ask_in_vain(partition=0)
    if isinstance(under, KafkaUnderTest):  # committed records end before it
        under.open_transaction(partition=1)
    with under.member("one") as one, under.member("two") as two, under.member("three") as three:
        members = one, two, three
        assert not any(log.is_at_end() for log in members), "nothing was polled yet"
        found: list[bytes | None] = []

        def are_at_end() -> bool:
            """Though one of the three has no partition."""
            for log in members:
                found.extend(record.value for record in log.poll(1, 0.1))
                log.answer([])
            return all(log.is_at_end() for log in members)

        wait_until(are_at_end)
        assert found[-2:] == [b"a", b"b"], "of the last generation"


def test_what_was_polled_and_not_answered_comes_again(under: Under) -> None:
    under.ask(b"a", b"b")
    with under.member("one") as log:
        assert polled(log, 2)
    with under.member("one") as log:
        records = polled(log, 2)
        assert [record.value for record in records] == [b"a", b"b"]
        assert log.answer(answer_to(under, records))
    assert under.answers() == [b"to a", b"to b"]


def test_members_share_the_partitions(under: Under) -> None:
    with under.member("one") as one, under.member("two") as two:
        for number in range(20):
            under.ask(b"%d" % number, partition=number % 2)
        heard: Counter[str] = Counter()

        def both() -> bool:
            for name, log in (("one", one), ("two", two)):
                records = log.poll(100, 0.1)
                if records and log.answer(answer_to(under, records)):
                    heard[name] += len(records)
                    under.ask(b"more", partition=0)
                    under.ask(b"more", partition=1)
            return len(heard) == 2 and sum(heard.values()) > 20

        deadline = time.monotonic() + DEADLINE_SECONDS
        while not both():
            assert time.monotonic() < deadline
    answers = Counter(under.answers())
    assert {answers[b"to %d" % number] for number in range(20)} == {1}


def test_a_batch_whose_partitions_went_to_another_member_is_not_answered(under: Under) -> None:
    under.ask(b"a", partition=0)
    under.ask(b"b", partition=1)
    with under.member("one") as one:
        deadline = time.monotonic() + DEADLINE_SECONDS
        records = polled(one)
        with under.member("two") as two:
            if isinstance(under, KafkaUnderTest):
                # the newcomer has its partition once the first member's next poll lets it in
                assert one.answer(answer_to(under, records))
            else:
                assert not one.answer(answer_to(under, records))
            while len(under.answers()) < 2:
                assert time.monotonic() < deadline
                for log in (one, two):
                    records = log.poll(100, 0.1)
                    if records:
                        log.answer(answer_to(under, records))
    assert sorted(value or b"" for value in under.answers()) == [b"to a", b"to b"]


def test_a_second_process_of_an_instance_takes_over(under: Under) -> None:
    under.ask(b"a")
    with under.member("one") as old:
        records = polled(old)
        with under.member("one") as new:
            with pytest.raises(PredictorFenced, match="another predictor answers as instance 'one'"):
                go_on(under, old, records)
            serve(under, new, lambda: len(under.answers()) == 1)
    assert under.answers() == [b"to a"]


def test_one_that_has_nothing_to_answer_hears_of_its_successor_too(under: Under) -> None:
    with under.member("one") as old:
        under.ask(b"a")
        assert old.answer(answer_to(under, polled(old)))
        with under.member("one") as new:
            new.poll(1, 0.5)
            with pytest.raises(PredictorFenced, match="another predictor answers as instance 'one'"):
                go_on(under, old, [])
            under.ask(b"b")
            serve(under, new, lambda: len(under.answers()) == 2)


def test_what_kafka_would_not_take_as_an_instance_is_refused() -> None:
    assert check_instance_name("pod-0.zone_b") == "pod-0.zone_b"
    for name in ("", "two words", "ü", ".", "x" * 101):
        with pytest.raises(UserError, match="choose another --instance"):
            check_instance_name(name)


# -- Kafka alone ---------------------------------------------------------------------------------------------------


@pytest.fixture
def kafka(kafka_broker: EmbeddedKafka, stream_name: str) -> Iterator[KafkaUnderTest]:
    under = KafkaUnderTest(kafka_broker, stream_name)
    yield under
    under.close()


def broken_off_at(point: str) -> Callable[[str], None]:
    """Once."""
    broken: list[str] = []

    def hook(name: str) -> None:
        if name == point and not broken:
            broken.append(name)
            raise TimeoutError(f"at {name}")

    return hook


@pytest.mark.kafka
@pytest.mark.parametrize("point", ["predict.begun", "predict.sent", "predict.offsets_added", "predict.committed"])
def test_a_transaction_that_breaks_off_is_answered_once_all_the_same(kafka: KafkaUnderTest, point: str) -> None:
    kafka.ask(b"a", b"b")
    with kafka.member("one") as log:
        records = polled(log, 2)
        on_fault_point(broken_off_at(point))
        try:
            assert log.answer(answer_to(kafka, records)) == (point == "predict.committed")
        finally:
            on_fault_point(None)
        serve(kafka, log, lambda: len(kafka.answers()) >= 2)
        kafka.ask(b"c")
        serve(kafka, log, lambda: len(kafka.answers()) >= 3)
    assert kafka.answers() == [b"to a", b"to b", b"to c"]


@pytest.mark.kafka
def test_the_first_start_may_leave_what_lies_there(kafka: KafkaUnderTest) -> None:
    kafka.ask(b"old", b"old")
    log = KafkaRequestLog(
        kafka.settings,
        stream=kafka.stream,
        role="challenger",
        instance="one",
        topic=topics.requests(kafka.stream),
        begins_at_end=True,
    )
    log.start()
    with log:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while set(log.lag_records().values()) != {0} or len(log.lag_records()) < 2:
            assert log.poll(100, 0.2) == []
            assert time.monotonic() < deadline
        kafka.ask(b"new")
        assert [record.value for record in polled(log)] == [b"new"]


def ending(kafka: KafkaUnderTest) -> KafkaRequestLog:
    """A member that leaves what lies there before its first start."""
    log = KafkaRequestLog(
        kafka.settings,
        stream=kafka.stream,
        role="champion",
        instance="one",
        topic=topics.requests(kafka.stream),
        begins_at_end=True,
    )
    log.start()
    return log


@pytest.mark.kafka
def test_where_it_began_is_remembered_though_the_first_answer_broke_off(kafka: KafkaUnderTest) -> None:
    kafka.ask(b"old")
    with ending(kafka) as log:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while set(log.lag_records().values()) != {0} or len(log.lag_records()) < 2:
            assert log.poll(100, 0.2) == []
            assert time.monotonic() < deadline
        kafka.ask(b"new")
        records = polled(log)
        on_fault_point(broken_off_at("predict.offsets_added"))
        try:
            assert not log.answer(answer_to(kafka, records))
        finally:
            on_fault_point(None)
        assert [record.value for record in polled(log)] == [b"new"]
    kafka.ask(b"meanwhile")
    with ending(kafka) as log:
        serve(kafka, log, lambda: len(kafka.answers()) == 2)
    assert kafka.answers() == [b"to new", b"to meanwhile"]


@pytest.mark.kafka
def test_a_transaction_that_was_not_heard_of_is_known_to_have_gone_through(kafka: KafkaUnderTest) -> None:
    kafka.ask(b"a")
    with kafka.member("one") as log:
        records = polled(log)
        on_fault_point(broken_off_at("predict.committed"))
        try:
            assert log.answer(answer_to(kafka, records))
        finally:
            on_fault_point(None)
        assert kafka.answers() == [b"to a"]


@pytest.mark.kafka
def test_offsets_past_the_logs_end_are_no_reason_to_answer_all_again(kafka: KafkaUnderTest) -> None:
    kafka.ask(b"a", b"b", b"c")
    with kafka.member("one") as log:
        serve(kafka, log, lambda: len(kafka.answers()) == 3)
        log._consumer.commit({TopicPartition(topics.requests(kafka.stream), 0): OffsetAndMetadata(50, "", -1)})
    with kafka.member("one") as log, pytest.raises(LogTruncated, match="--reset-offsets"):
        go_on(kafka, log, [])
    assert len(kafka.answers()) == 3


@pytest.mark.kafka
def test_brokers_that_cannot_be_reached_anew_end_nothing(
    kafka: KafkaUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka.ask(b"a")
    with kafka.member("one") as log:
        records = polled(log)

        def unreachable(*_: object, **__: object) -> None:
            raise kafka_connection.BrokersUnreachable("no broker is reachable")

        on_fault_point(broken_off_at("predict.sent"))
        try:
            with monkeypatch.context() as away:
                away.setattr(kafka_connection, "producer", unreachable)
                for _ in range(2):
                    assert not log.answer(answer_to(kafka, records))
                    records = polled(log)
        finally:
            on_fault_point(None)
        assert log.answer(answer_to(kafka, records))
    assert kafka.answers() == [b"to a"]


@pytest.mark.kafka
def test_requests_that_retention_deleted_are_passed_over_and_said(
    kafka: KafkaUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    kafka.ask(b"a", b"b", b"c")
    with kafka.member("one") as log:
        assert log.answer(answer_to(kafka, polled(log, 1, most=1)))
    with kafka_connection.admin(kafka.settings) as admin:
        admin.delete_records({TopicPartition(topics.requests(kafka.stream), 0): 3})
    kafka.ask(b"d")
    with kafka.member("one") as log:
        assert [record.value for record in polled(log)] == [b"d"]
    assert "are gone from the log before they were answered" in caplog.text


@pytest.mark.kafka
def test_topics_that_are_not_there_are_said(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers)
    with pytest.raises(UserError, match=r"topic .*\.requests does not exist .* or check --input"):
        topics.ensure_answers_topic(settings, "anything", requests=topics.requests(stream_name))
    with pytest.raises(UserError, match="would answer itself; give another --output"):
        topics.ensure_answers_topic(settings, "anything", requests="anything")
