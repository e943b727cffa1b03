"""Dead letters sent back: as they were at first, each once, whatever is killed or runs beside it."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import confluent_kafka
import pytest
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from consumers import dead_letters, kafka_connection, topics
from consumers.commit_log import BrokerUnavailable
from consumers.dead_letter_reader import identified, original_headers, parse_dead_letter
from consumers.dead_letter_replay import ReplayReport, Skipped, replay_dead_letters
from consumers.dead_letters import dead_letter
from consumers.events import event_data
from consumers.kafka_nullable import NULL_HEADERS, NullableSerializer, sendable_headers, sendable_value, with_nulls
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.record_source import read_records
from consumers.replay_position import ReplayPosition, parse_position
from consumers.replay_transactions import ReplayFenced, ReplayTransactions, replay_group
from consumers.topics import topic_partitions
from deploy.embedded_kafka import EmbeddedKafka
from model_store.fault_points import on_fault_point
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.record import Partition, Record
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings
from pipeline.user_error import UserError
from tests.consumers.digit_records import digit
from tests.deleted_topic import delete_topic
from tests.deploy.command_line import environment

R = DeadLetterReason
DEADLINE_SECONDS = 60.0


# Without brokers


def test_a_dead_letter_gives_back_the_record_that_it_was_made_of() -> None:
    headers = (("a", b"1"), ("a", None), (dead_letters.OFFSET, b"3"), ("b", b""))
    record = Record("t.samples", 2, 7, b"value", b"key", headers, 5)
    message = dead_letter("t", record, BadRecord(R.NO_LABEL, "none"))
    letter = parse_dead_letter(Record(message.topic, 0, 11, message.value, message.key, message.headers, 99))
    assert letter is not None
    assert (letter.reason, letter.detail, letter.stood_at) == ("no_label", "none", "t.samples/2/7")
    without_ours = tuple(header for header in headers if header[0] != dead_letters.OFFSET)
    assert letter.whole_record() == record._replace(headers=without_ours)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (dead_letters.REASON, b""),
        (dead_letters.PARTITION, b"-1"),
        (dead_letters.OFFSET, b"-1"),
        (dead_letters.TOPIC, b"\xff"),
    ],
)
def test_what_we_would_not_write_is_somebody_elses(name: str, value: bytes) -> None:
    message = dead_letter("t", Record("t.samples", 2, 7, b""), BadRecord(R.NO_PAYLOAD, ""))
    forged = tuple((key, value if key == name else content) for key, content in message.headers)
    assert parse_dead_letter(Record(message.topic, 0, 11, b"", None, forged)) is None


def test_nulls_that_could_not_be_sent_are_null_again() -> None:
    sent = (("a", b""), ("b", b""), ("c", b"full"), ("palimpsest-reason", b"x"), (NULL_HEADERS, b"1,2,77,x"))
    assert with_nulls(sent)[:3] == (("a", b""), ("b", None), ("c", b"full")), "what is not empty was not null"
    assert original_headers(sent) == (("a", b""), ("b", None), ("c", b"full"))


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("ce_id", b"x"),),
        (("ce_source", b"s"), ("ce_id", b"")),
        (("CE_ID", b"x"), ("ce_id", None), ("Ce_Source", b"")),
        (("ce_id", b"\xff"), ("ce_source", b"s")),
        (("ce_id", b"x"), ("ce_id", b"")),
    ],
)
def test_the_learner_knows_a_record_by_the_same_id_wherever_it_lies(headers: Any) -> None:
    """As the decoder would have it: what it finds at the first place it finds in the record that was sent on."""
    good = digit(3)
    rest = tuple(header for header in good.headers if header[0] not in ("ce_id", "ce_source"))
    record = Record("t.samples", 2, 7, good.value, None, (*rest, *headers), 5)
    decode = RecordDecoder(InputSettings()).decode
    at_first, sent_on = decode(record), decode(record._replace(offset=99, headers=identified(record)))
    if at_first.sample is None:
        assert at_first.problem is not None
        assert sent_on.problem is not None
        assert sent_on.problem.reason == at_first.problem.reason == R.BAD_HEADER
        return
    assert sent_on.sample is not None
    assert (sent_on.sample.source, sent_on.sample.id) == (at_first.sample.source, at_first.sample.id)
    assert identified(record._replace(headers=identified(record))) == identified(record)


def test_positions_are_kept_for_each_reason_and_stay_small() -> None:
    first = ReplayPosition(10).advanced([R.BROKEN_JSON], 50)
    assert (first.offset, first.of("broken_json"), first.of("no_label"), first.of("of a later release")) == (
        10,
        50,
        10,
        10,
    )
    assert (first.begin([R.BROKEN_JSON]), first.begin([R.BROKEN_JSON, R.NO_LABEL]), first.begin([])) == (50, 10, 10)
    assert parse_position(first.offset, first.metadata) == first
    some = first.advanced([], 30)
    assert (some.offset, some.ahead) == (30, {R.BROKEN_JSON: 50})
    assert some.advanced([], 60) == ReplayPosition(60)
    assert ReplayPosition(10).advanced(list(R), 2**63 - 1).metadata  # asserts that the brokers take it


@pytest.mark.parametrize("metadata", ["", "by hand", "[]", '{"broken_json": "5"}', '{"broken_json": 3}', None])
def test_a_position_set_with_another_tool_counts_for_all_reasons(metadata: str | None) -> None:
    assert parse_position(7, metadata) == ReplayPosition(7)


# With a broker


class Letters:
    """A stream with dead letters in it, as its learner and others would have written them."""

    def __init__(self, broker: EmbeddedKafka, stream: str, *, partitions: int = 1) -> None:
        self.stream = stream
        self.kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        topics.ensure_source_topics(self.kafka, stream, partitions=partitions)
        topics.ensure_report_topics(self.kafka, stream)
        self.producer = confluent_kafka.Producer({"bootstrap.servers": broker.bootstrap_servers, "log_level": 2})
        self.samples = topics.samples(stream)

    def write(self, topic: str, value: bytes | None, key: bytes | None, headers: Any, partition: int = 0) -> None:
        self.producer.produce(topic, value, key, headers=list(headers), partition=partition)
        assert self.producer.flush(DEADLINE_SECONDS) == 0

    def sample(self, value: bytes | None, partition: int = 0, headers: Any = ()) -> Record:
        self.write(self.samples, value, None, headers, partition)
        return self.read(self.samples)[-1] if partition == 0 else Record(self.samples, partition, 0, value)

    def dead(self, record: Record, reason: DeadLetterReason = R.BROKEN_IMAGE) -> None:
        message = dead_letter(self.stream, record, BadRecord(reason, "it is broken"))
        self.write(message.topic, message.value, message.key, message.headers)

    def dead_letters(self, count: int, reason: DeadLetterReason = R.BROKEN_IMAGE, first: int = 0) -> list[bytes]:
        values = [f"{reason}-{number}".encode() for number in range(first, first + count)]
        for number, value in enumerate(values, first):
            message = dead_letter(self.stream, Record(self.samples, 0, number, value), BadRecord(reason, ""))
            self.producer.produce(message.topic, message.value, message.key, headers=list(message.headers))
        assert self.producer.flush(DEADLINE_SECONDS) == 0
        return values

    def read(self, topic: str, partition: int = 0) -> list[Record]:
        with KafkaRecordSource(self.kafka, [Partition(topic, partition)]) as source:
            return list(read_records(source, source.beginning_offsets(), source.end_offsets()))

    def values(self) -> list[bytes | None]:
        return [record.value for record in self.read(self.samples)]

    def replay(self, **options: Any) -> ReplayReport:
        return replay_dead_letters(self.kafka, self.stream, **options)

    def forget_group(self) -> None:
        """As the brokers do with a group that was idle for a week."""
        with kafka_connection.admin(self.kafka) as admin:
            admin.delete_groups([replay_group(self.stream)])


@pytest.fixture
def letters(kafka_broker: EmbeddedKafka, stream_name: str) -> Letters:
    return Letters(kafka_broker, stream_name)


@pytest.fixture(autouse=True)
def no_fault_point_outlives_its_test() -> Iterator[None]:
    yield
    on_fault_point(None)


@pytest.mark.kafka
def test_records_come_back_as_they_were_to_where_they_stood(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    letters = Letters(kafka_broker, stream_name, partitions=2)
    headers = (("ce_id", b"1"), ("ce_source", b"s"), ("twice", b"a"), ("twice", None), ("empty", b""))
    records = [
        Record(letters.samples, 1, 7, b"value", b"\x00\xff", headers, 1234),
        Record(letters.samples, 0, 8, None, None, (("x", None),), 1234),
        Record(letters.samples, 1, 9, b"", b"", (), 1234),
    ]
    for record in records:
        letters.dead(record)
    assert letters.replay().sent == {"broken_image": 3}
    found = {
        (record.partition, record.value): record
        for number in (0, 1)
        for record in letters.read(letters.samples, number)
    }
    assert len(found) == 3
    for record in records:
        sent = found[record.partition, record.value]
        assert (sent.key, tuple(sent.headers)) == (record.key, identified(record))
        assert sent.timestamp_ms > 1_700_000_000_000, "not the old one, by which retention would delete it"


@pytest.mark.kafka
def test_each_reason_once_in_any_order_and_never_what_came_meanwhile(letters: Letters) -> None:
    images = letters.dead_letters(4, R.BROKEN_IMAGE)
    json = letters.dead_letters(3, R.BROKEN_JSON)
    dry = letters.replay(dry_run=True)
    assert (dry.sent, letters.values()) == ({"broken_image": 4, "broken_json": 3}, [])
    assert letters.replay(reasons=[R.BROKEN_JSON]).sent == {"broken_json": 3}
    assert letters.replay(reasons=[R.BROKEN_JSON]).sent == {}
    limited = letters.replay(limit=3, batch_records=2)
    assert (limited.sent, limited.stopped_by) == ({"broken_image": 3}, "limit")
    later = letters.dead_letters(2, R.BROKEN_JSON, first=3)
    letters.forget_group()  # what it knew stands in the events, too

    def more_come(name: str) -> None:
        if name == "replay.sent":
            on_fault_point(None)
            letters.dead_letters(1, R.NO_LABEL)

    on_fault_point(more_come)
    assert letters.replay().sent == {"broken_image": 1, "broken_json": 2}
    assert letters.values() == [*json, *images, *later]
    assert letters.replay().sent == {"no_label": 1}
    assert letters.replay().sent == {}


@pytest.mark.kafka
def test_what_is_not_ours_is_skipped_and_counted_once(letters: Letters) -> None:
    letters.write(topics.dead_letters(letters.stream), b"hello", None, [("x", b"y")])
    letters.dead(Record("other.samples", 0, 3, b"elsewhere"))
    letters.dead(Record(letters.samples, 9, 3, b"no such partition"))
    (good,) = letters.dead_letters(1)
    report = letters.replay(reasons=[R.BROKEN_IMAGE])
    assert (report.sent.total(), report.skipped) == (1, {Skipped.ELSEWHERE: 2})
    assert letters.replay().skipped == {Skipped.FOREIGN: 1}
    assert letters.replay() == ReplayReport(positions=letters.replay().positions)
    assert letters.values() == [good]


@pytest.mark.kafka
def test_a_value_that_was_left_out_is_fetched_from_where_it_stood(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge, other = letters.sample(b"\1" * 600, headers=[("ce_id", b"huge")]), letters.sample(b"\2" * 700)
    with monkeypatch.context() as small:
        small.setattr(dead_letters, "DEAD_LETTER_RECORD_BYTES", 500)
        letters.dead(huge, R.PAYLOAD_TOO_LARGE)
        letters.dead(other._replace(timestamp_ms=other.timestamp_ms + 1), R.PAYLOAD_TOO_LARGE)  # another lies there now
        letters.dead(other._replace(offset=500), R.PAYLOAD_TOO_LARGE)  # retention left none there
    assert {record.value for record in letters.read(topics.dead_letters(letters.stream))} == {None}
    warnings: list[str] = []
    report = letters.replay(warned=warnings.append)
    assert (report.sent, report.skipped) == ({"payload_too_large": 1}, {Skipped.GONE: 2})
    assert len(warnings) == 2
    again = letters.read(letters.samples)[2:]
    assert [(record.value, tuple(record.headers)) for record in again] == [(huge.value, identified(huge))]


@pytest.mark.kafka
def test_a_newer_replay_fences_the_older_one_and_each_is_sent_once(letters: Letters) -> None:
    values = letters.dead_letters(12)
    newer: list[ReplayReport] = []
    seen: list[str] = []

    def second_replay(name: str) -> None:
        seen.append(name)
        if seen == ["replay.sent", "replay.committed", "replay.sent"]:
            newer.append(letters.replay(batch_records=5))

    on_fault_point(second_replay)
    with pytest.raises(ReplayFenced, match="a newer replay has taken over"):
        letters.replay(batch_records=5)
    assert [report.sent.total() for report in newer] == [7]
    assert letters.values() == values


@pytest.mark.kafka
def test_a_stop_comes_between_transactions(letters: Letters) -> None:
    values = letters.dead_letters(10)
    stop = threading.Event()
    on_fault_point(lambda name: stop.set() if name == "replay.committed" else None)
    report = letters.replay(batch_records=4, stop=stop)
    assert (report.stopped_by, report.sent.total()) == ("signal", 4)
    assert letters.replay().sent.total() == 6
    assert letters.values() == values


@pytest.mark.kafka
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_stop_ends_it_while_nothing_comes(letters: Letters, monkeypatch: pytest.MonkeyPatch, dry_run: bool) -> None:
    values = letters.dead_letters(3)
    stop = threading.Event()

    def nothing(*_: Any) -> list[Record]:
        assert not stop.is_set(), "it polls on"
        stop.set()
        return []

    with monkeypatch.context() as away:
        away.setattr(KafkaRecordSource, "poll", nothing)
        report = letters.replay(stop=stop, dry_run=dry_run)
    assert (report.stopped_by, report.sent.total()) == ("signal", 0)
    letters.replay()
    assert letters.values() == values


@pytest.mark.kafka
def test_a_stop_ends_the_wait_for_an_older_replays_transaction(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.dead_letters(1)
    stop, ended = threading.Event(), threading.Event()

    class StillEnding:
        def init_transactions(self) -> None:
            stop.set()
            ended.wait(DEADLINE_SECONDS)

        def close(self, timeout: float) -> None:
            ended.set()

    with monkeypatch.context() as waiting:
        waiting.setattr(kafka_connection, "producer", lambda *_, **__: StillEnding())
        assert letters.replay(stop=stop) == ReplayReport(stopped_by="signal")
    assert ended.is_set(), "it was closed"


def test_a_stop_ends_the_connecting() -> None:
    with socket.socket() as mute:  # takes connections, and never says a word
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{mute.getsockname()[1]}", connect_timeout_seconds=15.0)
        began = time.monotonic()
        assert replay_dead_letters(settings, "s", stop=stop) == ReplayReport(stopped_by="signal")
        assert time.monotonic() - began < 10.0


KILLED = """
import os, signal, sys
from consumers.dead_letter_replay import replay_dead_letters
from consumers.kafka_settings import KafkaSettings
from model_store.fault_points import on_fault_point

servers, stream, point, times = sys.argv[1:]
left = [int(times)]

def hook(name):
    left[0] -= name == point
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

on_fault_point(hook)
replay_dead_letters(KafkaSettings(bootstrap_servers=servers), stream, batch_records=4)
"""


@pytest.mark.kafka
def test_killed_anywhere_and_started_again_it_sends_each_once(letters: Letters) -> None:
    values = letters.dead_letters(22)
    for point, times in (("replay.sent", 1), ("replay.committed", 1), ("replay.sent", 2)):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, str(letters.kafka.bootstrap_servers), letters.stream, point, str(times)],
            env=environment(),
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert ended.returncode == -signal.SIGKILL
    # They have brought 0, 1 and 1 transactions to their ends.
    assert letters.replay(dry_run=True).sent.total() == 22 - 2 * 4
    letters.replay()
    assert Counter(letters.values()) == Counter(values)
    assert letters.values() == values, "in their order"


@pytest.mark.kafka
def test_every_replay_tells_how_far_it_came(letters: Letters) -> None:
    letters.dead_letters(3)
    letters.replay(limit=2)
    (event,) = letters.read(topics.events(letters.stream))
    data = event_data(event, kind="dead_letters_replayed", branch="main")
    assert data is not None
    assert (data["positions"], data["sent"], data["skipped"]) == ([[0, 2, "{}"]], {"broken_image": 2}, {})


@pytest.mark.kafka
def test_a_record_that_the_topic_does_not_take_is_named_and_nothing_is_lost(letters: Letters) -> None:
    """Whoever wrote it wrote it before the topic took less."""
    (small,) = letters.dead_letters(1)
    message = dead_letter(
        letters.stream,
        Record(letters.samples, 0, 7, random.Random(0).randbytes(2_000_000), headers=[("ce_id", b"large")]),
        BadRecord(R.BROKEN_JSON, ""),
    )
    servers = str(letters.kafka.bootstrap_servers)
    with kafka_connection.admin(letters.kafka) as admin:
        admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, letters.samples, configs={"max.message.bytes": "1000000"})]
        )
    large = confluent_kafka.Producer({"bootstrap.servers": servers, "message.max.bytes": 10_000_000, "log_level": 2})
    large.produce(message.topic, message.value, message.key, headers=list(message.headers))
    assert large.flush(DEADLINE_SECONDS) == 0
    with pytest.raises(UserError, match=r"'large', 2,000,\d+ bytes\): raise max.message.bytes"):
        letters.replay()
    assert letters.values() == []
    assert letters.replay(reasons=[R.BROKEN_IMAGE]).sent.total() == 1
    assert letters.values() == [small]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (kafka_errors.ProducerFencedError(), ReplayFenced),
        (kafka_errors.KafkaError("ProducerFencedError: gone"), ReplayFenced),
        (kafka_errors.TransactionalIdAuthorizationFailedError(), UserError),
        (kafka_errors.KafkaConnectionError("away"), BrokerUnavailable),
        (TimeoutError("no answer"), BrokerUnavailable),
    ],
)
def test_what_goes_wrong_in_a_transaction_has_a_way_out(error: Exception, raised: type[Exception]) -> None:
    class Refuses:
        def begin_transaction(self) -> None:
            raise error

    transactions = ReplayTransactions(KafkaSettings(), "t", [Partition("t.dead-letters", 0)], "id")
    transactions._producer = Refuses()
    with pytest.raises(raised, match=r"palimpsest.t.dead-letters.replay|start the replay again"):
        transactions.send([], {})


@pytest.mark.parametrize(
    ("where", "error", "acl"),
    [
        (
            "begin_transaction",
            kafka_errors.TransactionalIdAuthorizationFailedError(),
            "Write on transactional-id palimpsest.t.dead-letters.replay",
        ),
        ("send", kafka_errors.TopicAuthorizationFailedError(), "Write on topic t.samples"),
        (
            "send_offsets_to_transaction",
            kafka_errors.GroupAuthorizationFailedError(),
            "Read on group palimpsest.t.dead-letters.replay",
        ),
        ("send_offsets_to_transaction", kafka_errors.TopicAuthorizationFailedError(), "Read on topic t.dead-letters"),
    ],
)
def test_what_is_not_allowed_is_named_with_the_line_that_allows_it(where: str, error: Exception, acl: str) -> None:
    class Refuses:
        def __getattr__(self, name: str) -> Any:
            def call(*_: Any, **__: Any) -> Any:
                if name == where:
                    raise error
                return self

            return call

    transactions = ReplayTransactions(KafkaSettings(), "t", [Partition("t.dead-letters", 0)], "id")
    transactions._producer = Refuses()
    with pytest.raises(UserError, match=rf"do not allow this user {acl}; have the ACL"):
        transactions.send([Record("t.samples", 0, 0, b"")], {})


@pytest.mark.kafka
def test_dead_letters_that_were_made_anew_are_not_taken_for_the_old_ones(letters: Letters) -> None:
    letters.dead_letters(5)
    letters.replay()
    name = topics.dead_letters(letters.stream)
    old, _ = topic_partitions(letters.kafka, name)
    delete_topic(letters.kafka, name)
    topics.ensure_report_topics(letters.kafka, letters.stream)
    assert topic_partitions(letters.kafka, name)[0] != old
    (value,) = letters.dead_letters(1, R.NO_LABEL)
    assert letters.replay().sent == {"no_label": 1}
    assert letters.values()[-1] == value


@pytest.mark.kafka
def test_a_stream_that_no_learner_has_worked_on_is_named(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers)
    with pytest.raises(UserError, match="no learner has worked on"):
        replay_dead_letters(settings, stream_name)


NULLS: Sequence[tuple[bytes | None, bytes | None]] = [(None, None), (b"", None), (None, b""), (b"k", b"v")]


@pytest.mark.kafka
def test_null_keys_values_and_headers_travel(letters: Letters) -> None:
    headers = (("a", None), ("a", b""), ("b", b"x"), ("c", None))
    producer = kafka_connection.producer(letters.kafka, value_serializer=NullableSerializer(), compression_type="zstd")
    for key, value in NULLS:
        producer.send(letters.samples, key=key, value=sendable_value(value), headers=sendable_headers(headers)).get(
            DEADLINE_SECONDS
        )
    producer.close()
    found = [(record.key, record.value, tuple(record.headers)) for record in letters.read(letters.samples)]
    assert found == [(key, value, headers) for key, value in NULLS]
