"""The contract of a commit log, held by Kafka's and by its twin; and Kafka's with brokers that go away."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import confluent_kafka
import pytest
from kafka import errors as kafka_errors

from consumers import kafka_commit_log, kafka_connection, topics
from consumers.commit_log import (
    BrokerUnavailable,
    CommitLog,
    Committed,
    LearnerFenced,
    OutboxRefused,
    parse_metadata,
    transactional_id,
)
from consumers.kafka_commit_log import KafkaCommitLog
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.memory_commit_log import InMemoryCommitLog, InMemoryCommits
from deploy.embedded_kafka import EmbeddedKafka
from model_store.fault_points import on_fault_point
from model_store.snapshot import OutboxMessage
from pipeline.record import Partition, Record
from pipeline.user_error import UserError
from tests.waiting import wait_until

DEADLINE_SECONDS = 30.0


class MemoryUnderTest:
    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.commits = InMemoryCommits()
        self.partitions = (Partition(topics.samples(stream), 0), Partition(topics.samples(stream), 1))

    def grow(self) -> Partition:
        """A partition more, which no learner knows when it is made."""
        return Partition(topics.samples(self.stream), 2)

    def learner(self, branch: str = "main") -> CommitLog:
        return InMemoryCommitLog(self.commits, self.stream, branch, dict.fromkeys(self.partitions, 0))

    def told(self, count: int) -> list[OutboxMessage]:
        assert len(self.commits.messages) >= count
        return list(self.commits.messages)

    def committed(self, branch: str = "main") -> Committed | None:
        return self.commits.committed.get(transactional_id(self.stream, branch))


class KafkaUnderTest:
    def __init__(self, broker: EmbeddedKafka, stream: str) -> None:
        self.stream = stream
        self.settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        topics.ensure_source_topics(self.settings, stream, partitions=2)
        topics.ensure_report_topics(self.settings, stream)
        self.partitions = topics.check_samples_topic(self.settings, stream).partitions

    def grow(self) -> Partition:
        topic = topics.samples(self.stream)
        with kafka_connection.admin(self.settings) as admin:
            admin.create_partitions({topic: 3})
        wait_until(lambda: len(topics.check_samples_topic(self.settings, self.stream).partitions) == 3)
        return Partition(topic, 2)

    def learner(self, branch: str = "main") -> KafkaCommitLog:
        return KafkaCommitLog(self.settings, self.stream, branch, self.partitions)

    def told(self, count: int) -> list[OutboxMessage]:
        """What a read_committed reader finds in events and dead letters: `count` messages, and whatever else is there.

        Every message is told in a transaction that is over, so the last markers are written when nothing is held back.
        """
        names = (topics.events(self.stream), topics.dead_letters(self.stream))
        records: list[Record] = []
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(records) < count:
            assert time.monotonic() < deadline, records
            records = []
            for name in names:
                with KafkaRecordSource(self.settings, [Partition(name, 0)]) as source:
                    while source.positions() != source.end_offsets():
                        records += source.poll(100, 0.2)
        return [OutboxMessage(r.topic, r.key, r.value, tuple(r.headers)) for r in records]

    def committed(self, branch: str = "main") -> Committed | None:
        """As Kafka's own tools see it: the offsets of an ordinary group."""
        group = transactional_id(self.stream, branch)
        with kafka_connection.admin(self.settings) as admin:
            found = admin.list_group_offsets({group: None})[group]
        if not found:
            return None
        (numbers,) = {parse_metadata(entry.metadata) for entry in found.values()}
        assert numbers is not None
        offsets = {Partition(tp.topic, tp.partition): entry.offset for tp, entry in found.items()}
        return Committed(offsets=offsets, generation=numbers[0], sequence=numbers[1])


UnderTest = MemoryUnderTest | KafkaUnderTest


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def under_test(request: pytest.FixtureRequest, stream_name: str) -> UnderTest:
    if request.param == "memory":
        return MemoryUnderTest(stream_name)
    return KafkaUnderTest(request.getfixturevalue("kafka_broker"), stream_name)


@pytest.fixture
def learner(under_test: UnderTest) -> Iterator[Callable[[str], CommitLog]]:
    opened: list[CommitLog] = []

    def open_one(branch: str = "main") -> CommitLog:
        opened.append(under_test.learner(branch))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
        one.close()  # a second time is no error


Learner = Callable[..., CommitLog]


def committed_soon(under_test: UnderTest, expected: Committed, branch: str = "main") -> None:
    """A commit is acknowledged a moment before the brokers have written its markers and show it."""
    wait_until(lambda: under_test.committed(branch) == expected)


def event(stream: str, text: str) -> OutboxMessage:
    return OutboxMessage(topics.events(stream), b"kind", text.encode(), (("ce_id", text.encode()),))


def offsets(under_test: UnderTest, first: int, second: int) -> Mapping[Partition, int]:
    return dict(zip(under_test.partitions, (first, second), strict=True))


def test_the_first_start_claims_the_beginning(under_test: UnderTest, learner: Learner) -> None:
    log = learner()
    assert log.start() is None
    assert log.generation == 1
    committed_soon(under_test, Committed(offsets=offsets(under_test, 0, 0), generation=1, sequence=0))


def test_a_look_fences_nobody(under_test: UnderTest, learner: Learner) -> None:
    onlooker = learner()
    assert onlooker.committed() is None
    log = learner()
    log.start()
    log.commit(offsets(under_test, 5, 0), 1, ())
    wait_until(lambda: onlooker.committed() == Committed(offsets=offsets(under_test, 5, 0), generation=1, sequence=1))
    log.commit(offsets(under_test, 6, 0), 2, ())


def test_a_later_start_finds_what_was_committed_and_claims_it(under_test: UnderTest, learner: Learner) -> None:
    first = learner()
    first.start()
    first.commit(offsets(under_test, 7, 3), 1, ())
    first.commit(offsets(under_test, 9, 3), 2, ())
    first.close()
    second = learner()
    assert second.start() == Committed(offsets=offsets(under_test, 9, 3), generation=1, sequence=2)
    assert second.generation == 2
    committed_soon(under_test, Committed(offsets=offsets(under_test, 9, 3), generation=2, sequence=2))
    third = learner()
    assert third.start() == Committed(offsets=offsets(under_test, 9, 3), generation=2, sequence=2)
    assert third.generation == 3


def test_a_generation_never_comes_twice_even_where_brokers_forgot(learner: Learner) -> None:
    log = learner()
    assert log.start(known_generation=41) is None
    assert log.generation == 42
    log.close()
    again = learner()
    again.start(known_generation=41)
    assert again.generation == 43


@pytest.mark.parametrize("act", ["commit", "heartbeat"])
def test_a_second_start_fences_the_first(under_test: UnderTest, learner: Learner, act: str) -> None:
    first = learner()
    first.start()
    first.commit(offsets(under_test, 1, 1), 1, [event(under_test.stream, "one")])
    second = learner()
    second.start()
    acts: dict[str, Callable[[], None]] = {
        "commit": lambda: first.commit(offsets(under_test, 2, 2), 2, [event(under_test.stream, "from the grave")]),
        "heartbeat": first.heartbeat,
    }
    with pytest.raises(LearnerFenced):
        acts[act]()
    second.commit(offsets(under_test, 3, 3), 2, [event(under_test.stream, "two")])
    second.heartbeat()
    assert [message.value for message in under_test.told(2)] == [b"one", b"two"]
    committed_soon(under_test, Committed(offsets=offsets(under_test, 3, 3), generation=2, sequence=2))


def test_branches_do_not_disturb_each_other(under_test: UnderTest, learner: Learner) -> None:
    main, other = learner(), learner("other")
    main.start()
    other.start()
    main.commit(offsets(under_test, 1, 1), 1, ())
    other.commit(offsets(under_test, 2, 2), 1, ())
    main.heartbeat()
    committed_soon(under_test, Committed(offsets=offsets(under_test, 1, 1), generation=1, sequence=1))
    committed_soon(under_test, Committed(offsets=offsets(under_test, 2, 2), generation=1, sequence=1), "other")


def test_the_outbox_is_told_once_and_whole(under_test: UnderTest, learner: Learner) -> None:
    stream = under_test.stream
    messages = [
        event(stream, "first"),
        OutboxMessage(topics.dead_letters(stream), None, None, (("palimpsest-reason", b"no_payload"),)),
        OutboxMessage(topics.dead_letters(stream), b"\x00", b"\xff" * 3_000_000, ()),
        OutboxMessage(topics.dead_letters(stream), None, b"", (("twice", b"a"), ("twice", b"b"), ("empty", b""))),
    ]
    log = learner()
    log.start()
    log.commit(offsets(under_test, 4, 0), 1, messages)
    log.commit(offsets(under_test, 4, 0), 1, messages)  # the same call once more
    log.heartbeat()
    assert under_test.told(4) == messages


def test_offsets_may_go_back(under_test: UnderTest, learner: Learner) -> None:
    log = learner()
    log.start()
    log.commit(offsets(under_test, 100, 50), 1, ())
    log.commit(offsets(under_test, 20, 10), 2, ())  # an adoption
    committed_soon(under_test, Committed(offsets=offsets(under_test, 20, 10), generation=1, sequence=2))


def test_a_heartbeat_changes_nothing(under_test: UnderTest, learner: Learner) -> None:
    log = learner()
    log.start()
    log.commit(offsets(under_test, 5, 6), 1, [event(under_test.stream, "once")])
    log.heartbeat()
    log.heartbeat()
    assert [message.value for message in under_test.told(1)] == [b"once"]
    committed_soon(under_test, Committed(offsets=offsets(under_test, 5, 6), generation=1, sequence=1))


def test_a_sequence_does_not_go_back(under_test: UnderTest, learner: Learner) -> None:
    first = learner()
    first.start()
    first.commit(offsets(under_test, 1, 1), 5, ())
    second = learner()
    second.start()
    with pytest.raises(AssertionError, match="sequence 5 is not above 5"):
        second.commit(offsets(under_test, 1, 1), 5, ())


def test_partitions_that_came_later_are_committed_and_found_like_all_others(
    under_test: UnderTest, learner: Learner
) -> None:
    first = learner()
    first.start()
    grown = {**offsets(under_test, 5, 6), under_test.grow(): 7}
    first.commit(grown, 1, ())
    first.heartbeat()
    committed_soon(under_test, Committed(offsets=grown, generation=1, sequence=1))
    second = learner()
    assert second.start() == Committed(offsets=grown, generation=1, sequence=1)
    committed_soon(under_test, Committed(offsets=grown, generation=2, sequence=1))


def test_any_thread_may_use_it_one_at_a_time(under_test: UnderTest, learner: Learner) -> None:
    """It is made by one, started by another, and commits in a third, which lives no longer than its commit."""
    log = learner()
    heard: list[object] = []

    def in_a_thread(act: Callable[[], object]) -> None:
        def run() -> None:
            try:
                heard.append(act())
            except BaseException as problem:
                heard.append(problem)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()

    in_a_thread(log.start)
    in_a_thread(lambda: log.commit(offsets(under_test, 1, 1), 1, [event(under_test.stream, "one")]))
    in_a_thread(log.heartbeat)
    in_a_thread(lambda: log.commit(offsets(under_test, 2, 2), 2, [event(under_test.stream, "two")]))
    assert heard == [None] * 4
    log.commit(offsets(under_test, 3, 3), 3, ())
    assert [message.value for message in under_test.told(2)] == [b"one", b"two"]
    committed_soon(under_test, Committed(offsets=offsets(under_test, 3, 3), generation=1, sequence=3))


def test_a_start_that_was_stopped_before_claims_nothing(under_test: UnderTest, learner: Learner) -> None:
    first = learner()
    first.start()
    first.commit(offsets(under_test, 1, 1), 1, ())
    stop = threading.Event()
    stop.set()
    with pytest.raises(BrokerUnavailable, match="stopped"):
        learner().start(stop=stop)
    first.commit(offsets(under_test, 2, 2), 2, ())
    committed_soon(under_test, Committed(offsets=offsets(under_test, 2, 2), generation=1, sequence=2))
    stop.clear()
    second = learner()
    assert second.start(stop=stop) is not None
    stop.set()
    second.commit(offsets(under_test, 3, 3), 3, ())  # the last commit comes after the stop
    committed_soon(under_test, Committed(offsets=offsets(under_test, 3, 3), generation=2, sequence=3))


def test_brokers_that_are_away_in_memory(stream_name: str) -> None:
    under_test = MemoryUnderTest(stream_name)
    log = under_test.learner()
    log.start()
    under_test.commits.is_away = True
    with pytest.raises(BrokerUnavailable):
        log.commit(offsets(under_test, 1, 1), 1, [event(stream_name, "later")])
    under_test.commits.is_away = False
    log.commit(offsets(under_test, 1, 1), 1, [event(stream_name, "later")])
    assert [message.value for message in under_test.told(1)] == [b"later"]


def test_metadata_of_other_tools_is_not_ours() -> None:
    assert parse_metadata("palimpsest/1 generation=3 sequence=17") == (3, 17)
    assert Committed(generation=3, sequence=17).metadata == "palimpsest/1 generation=3 sequence=17"
    for foreign in (None, "", "NO_METADATA", "palimpsest/1 generation=3", "palimpsest/2 generation=3 sequence=17"):
        assert parse_metadata(foreign) is None


# What only Kafka has


@pytest.mark.kafka
def test_headers_may_be_null(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    headers = (("a", b"1"), ("b", None), ("c", b""), ("d", None))
    with under_test.learner() as log:
        log.start()
        log.commit(offsets(under_test, 1, 1), 1, [OutboxMessage(topics.dead_letters(stream_name), b"k", None, headers)])
    (told,) = under_test.told(1)
    assert told.headers == headers
    assert (told.key, told.value) == (b"k", None)


@pytest.mark.kafka
def test_partitions_that_came_later_survive_a_commit_in_doubt(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    with under_test.learner() as log:
        log.start()
        grown = {**offsets(under_test, 5, 6), under_test.grow(): 7}
        log.commit(grown, 1, ())
        log._in_doubt = True
        log.heartbeat()  # of what is read back
        committed_soon(under_test, Committed(offsets=grown, generation=1, sequence=1))
        assert log._last == Committed(offsets=grown, generation=1, sequence=1)


@pytest.mark.kafka
def test_the_last_commit_is_carried_through_although_a_stop_was_heard(
    kafka_broker: EmbeddedKafka, stream_name: str
) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    stop = threading.Event()
    with under_test.learner() as log:
        with kafka_connection.hearing(stop):
            log.start(stop=stop)
            stop.set()
            log._in_doubt = True
            log.commit(offsets(under_test, 1, 1), 1, ())
        committed_soon(under_test, Committed(offsets=offsets(under_test, 1, 1), generation=1, sequence=1))


@pytest.fixture
def mute_server() -> Iterator[str]:
    """Takes connections, and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(20)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def stopped_meanwhile(stop: threading.Event) -> Iterator[None]:
    """The stop comes once the wait is under way, and is heard long before the wait would end."""
    setter = threading.Timer(0.3, stop.set)
    setter.start()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="stopped"):
        yield
    assert stop.is_set()
    assert time.monotonic() - began < 10.0
    setter.join()


@pytest.mark.parametrize("wait", ["start", "committed"])
def test_a_stop_is_heard_while_it_connects(mute_server: str, wait: str) -> None:
    log = KafkaCommitLog(
        KafkaSettings(bootstrap_servers=mute_server, connect_timeout_seconds=15.0), "s", "main", [Partition("s", 0)]
    )
    stop = threading.Event()
    with log, stopped_meanwhile(stop):
        if wait == "start":
            log.start(stop=stop)
        else:
            with kafka_connection.hearing(stop):
                log.committed()


@pytest.mark.kafka
@pytest.mark.parametrize("step", ["init_transactions", "list_group_offsets", "list_partition_offsets", "send"])
def test_a_stop_is_heard_at_every_step_of_a_start(
    kafka_broker: EmbeddedKafka, stream_name: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    never = threading.Event()

    def hanging(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **options: Any) -> Any:
            client = make(*arguments, **options)
            name = "send_offsets_to_transaction" if step == "send" else step
            if hasattr(client, name):
                monkeypatch.setattr(client, name, lambda *_: never.wait(DEADLINE_SECONDS))
            return client

        return made

    monkeypatch.setattr(kafka_connection, "producer", hanging(kafka_connection.producer))
    monkeypatch.setattr(kafka_connection, "admin", hanging(kafka_connection.admin))
    stop = threading.Event()
    with under_test.learner() as log, stopped_meanwhile(stop):
        log.start(stop=stop)
    never.set()


@pytest.mark.kafka
def test_fault_points_are_passed_in_their_order(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    passed: list[str] = []
    on_fault_point(passed.append)
    transaction = ["transaction.begun", "transaction.sent", "transaction.offsets_added", "transaction.committed"]
    try:
        with under_test.learner() as log:
            log.start()
            assert passed == ["start.fenced", *transaction, "start.claimed"]
            passed.clear()
            log.commit(offsets(under_test, 1, 1), 1, [event(stream_name, "one")])
    finally:
        on_fault_point(None)
    assert passed == transaction


@pytest.mark.kafka
def test_what_a_killed_learner_left_open_is_never_seen(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    with under_test.learner() as log:
        log.start()
        log.commit(offsets(under_test, 1, 1), 1, [event(stream_name, "told")])
    # A learner that dies in the midst of its transaction: outbox and offsets sent, never committed.
    dying = confluent_kafka.Producer(
        {
            "bootstrap.servers": kafka_broker.bootstrap_servers,
            "transactional.id": transactional_id(stream_name, "main"),
        }
    )
    dying.init_transactions(DEADLINE_SECONDS)
    dying.begin_transaction()
    dying.produce(topics.events(stream_name), b"never told", partition=0)
    dying.send_offsets_to_transaction(
        [confluent_kafka.TopicPartition(topics.samples(stream_name), 0, 99)],
        confluent_kafka.Consumer(
            {"bootstrap.servers": kafka_broker.bootstrap_servers, "group.id": transactional_id(stream_name, "main")}
        ).consumer_group_metadata(),
        DEADLINE_SECONDS,
    )
    assert dying.flush(DEADLINE_SECONDS) == 0
    with under_test.learner() as log:
        assert log.start() == Committed(offsets=offsets(under_test, 1, 1), generation=1, sequence=1)
        log.commit(offsets(under_test, 2, 2), 2, [event(stream_name, "told again")])
    assert [message.value for message in under_test.told(2)] == [b"told", b"told again"]


@pytest.mark.kafka
def test_a_message_that_no_broker_takes_is_refused_and_the_next_goes_through(
    kafka_broker: EmbeddedKafka, stream_name: str
) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    with under_test.learner() as log:
        log.start()
        noise = random.Random(0).randbytes(9_000_000)  # nothing that compression could make small enough
        too_large = OutboxMessage(topics.events(stream_name), None, noise, ())
        with pytest.raises(OutboxRefused, match=r"max\.message\.bytes"):
            log.commit(offsets(under_test, 1, 1), 1, [event(stream_name, "with it"), too_large])
        log.commit(offsets(under_test, 1, 1), 2, [event(stream_name, "without it")])
    assert [message.value for message in under_test.told(1)] == [b"without it"]


@pytest.mark.kafka
@pytest.mark.slow
def test_a_broker_that_restarts_in_the_midst_doubles_and_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, stream_name: str
) -> None:
    with EmbeddedKafka(tmp_path_factory.mktemp("restarting"), heap_mb=256) as broker:
        under_test = KafkaUnderTest(broker, stream_name)
        with under_test.learner() as log:
            log.start()
            log.commit(offsets(under_test, 1, 1), 1, [event(stream_name, "1")])
            broker.kill()

            def until_it_is_taken() -> None:
                """As the learner's process does."""
                while True:
                    with contextlib.suppress(BrokerUnavailable):
                        log.commit(offsets(under_test, 2, 2), 2, [event(stream_name, "2")])
                        return

            committing = threading.Thread(target=until_it_is_taken, daemon=True)
            committing.start()
            committing.join(0.5)
            assert committing.is_alive()  # it waits for the broker instead of giving up
            broker.start()
            committing.join(90)
            assert not committing.is_alive()
            log.heartbeat()
            log.commit(offsets(under_test, 3, 3), 3, [event(stream_name, "3")])
        told: Sequence[OutboxMessage] = under_test.told(3)
        assert [message.value for message in told] == [b"1", b"2", b"3"]
        committed_soon(under_test, Committed(offsets=offsets(under_test, 3, 3), generation=1, sequence=3))


@pytest.mark.kafka
@pytest.mark.parametrize("went_through", [True, False])
def test_a_commit_in_doubt_is_looked_up_before_it_is_told_again(
    kafka_broker: EmbeddedKafka, stream_name: str, monkeypatch: pytest.MonkeyPatch, went_through: bool
) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    with under_test.learner() as log:
        log.start()
        producer = log._producer
        assert producer is not None
        commit_transaction = producer.commit_transaction

        def answer_is_lost() -> None:
            if went_through:
                commit_transaction()
            raise TimeoutError("the answer was lost")

        monkeypatch.setattr(producer, "commit_transaction", answer_is_lost)
        log.commit(offsets(under_test, 2, 2), 1, [event(stream_name, "once")])
        log.commit(offsets(under_test, 3, 3), 2, [event(stream_name, "twice")])
        assert log.generation == 1
    assert [message.value for message in under_test.told(2)] == [b"once", b"twice"]
    committed_soon(under_test, Committed(offsets=offsets(under_test, 3, 3), generation=1, sequence=2))


@pytest.mark.kafka
def test_a_learner_in_doubt_does_not_fence_the_newer_one(
    kafka_broker: EmbeddedKafka, stream_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    with under_test.learner() as old, under_test.learner() as new:
        old.start()
        new.start()
        assert old._producer is not None

        def answer_is_lost() -> None:
            raise TimeoutError("the answer was lost")

        monkeypatch.setattr(old._producer, "begin_transaction", answer_is_lost)
        with pytest.raises(LearnerFenced):
            old.commit(offsets(under_test, 1, 1), 1, ())
        new.commit(offsets(under_test, 2, 2), 1, ())
        new.heartbeat()


@pytest.mark.kafka
def test_brokers_that_stay_away_end_in_broker_unavailable(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    with KafkaCommitLog(under_test.settings, stream_name, "main", under_test.partitions, give_up_seconds=0.0) as log:
        log.start()
        # Nobody listens where this one is sent to find out what became of its transaction.
        log._settings = KafkaSettings(bootstrap_servers="127.0.0.1:1", connect_timeout_seconds=0.2)
        log._in_doubt = True
        with pytest.raises(BrokerUnavailable, match="did not take a commit"):
            log.commit(offsets(under_test, 1, 1), 1, ())
        log._settings = under_test.settings
        log.commit(offsets(under_test, 1, 1), 1, [event(stream_name, "at last")])
    assert [message.value for message in under_test.told(1)] == [b"at last"]


@pytest.mark.kafka
def test_offsets_set_by_another_tool_keep_their_values(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    under_test = KafkaUnderTest(kafka_broker, stream_name)
    group = transactional_id(stream_name, "main")
    other_tool = confluent_kafka.Consumer({"bootstrap.servers": kafka_broker.bootstrap_servers, "group.id": group})
    other_tool.commit(offsets=[confluent_kafka.TopicPartition(topics.samples(stream_name), 0, 12)], asynchronous=False)
    other_tool.close()
    with under_test.learner() as log:
        before = log.start(known_generation=3)
        assert before == Committed(offsets={under_test.partitions[0]: 12}, generation=0, sequence=0)
        assert log.generation == 4
    committed_soon(under_test, Committed(offsets=offsets(under_test, 12, 0), generation=4, sequence=0))


def test_a_commit_comes_back_to_its_caller_while_the_brokers_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """In here nobody hears a stop: some seconds, by a clock that each attempt moves on by three."""
    partition = Partition("s.samples", 0)
    log = KafkaCommitLog(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "s", "main", [partition])
    log._last = Committed(offsets={partition: 0}, generation=1, sequence=0)
    clock = [0.0]

    def attempt(*_: Any) -> None:
        clock[0] += 3.0
        raise TimeoutError("no answer")

    monkeypatch.setattr(log, "_transact", attempt)
    monkeypatch.setattr(log, "_recover", attempt)
    monkeypatch.setattr(kafka_commit_log, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda _: None))
    with pytest.raises(BrokerUnavailable):
        log.commit({partition: 1}, 1, ())
    assert clock[0] <= 15.0


def test_an_attempt_has_the_time_that_its_headers_need_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a large outbox never went through, and the learner waited for ever."""
    limits: list[float] = []
    monkeypatch.setattr(kafka_commit_log, "within", lambda seconds, *_: limits.append(seconds))
    partition = Partition("s.samples", 0)
    log = KafkaCommitLog(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "s", "main", [partition])
    log._last = Committed(offsets={partition: 0}, generation=1, sequence=0)
    log._producer = SimpleNamespace()
    message = OutboxMessage("s.dead-letters", None, None, (("h", bytes(10_000_000)),))
    log.commit({partition: 1}, 1, [message] * 3)
    assert limits == [pytest.approx(10.0 + 15.0, abs=0.1)]
    log._producer = None


@pytest.mark.parametrize(
    ("error", "acl"),
    [
        (kafka_errors.GroupAuthorizationFailedError(), "Read on group palimpsest.s.main.learner"),
        (kafka_errors.TopicAuthorizationFailedError(), "Read on topic s.samples"),
    ],
)
def test_a_look_that_is_not_allowed_names_the_acl(monkeypatch: pytest.MonkeyPatch, error: Exception, acl: str) -> None:
    class Refuses:
        def list_group_offsets(self, _: Any) -> None:
            raise error

    monkeypatch.setattr(kafka_connection, "admin", lambda _: contextlib.nullcontext(Refuses()))
    log = KafkaCommitLog(KafkaSettings(), "s", "main", [Partition("s.samples", 0)])
    with pytest.raises(UserError, match=f"do not allow this user {acl}; have the ACL added: kafka-acls.sh"):
        log.committed()
