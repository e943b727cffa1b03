"""Answers and labels read from their topics: by the twin in memory, and by Kafka."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import confluent_kafka
import pytest
from kafka import errors as kafka_errors

from consumers import followed_topic, kafka_connection, topics
from consumers.answers import answer_data, answer_message
from consumers.followed_topic import kafka_topic
from consumers.kafka_settings import KafkaSettings
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.record_source import ReadingStopped, RecordSource, RecordUnreadable, SourceUnavailable
from consumers.shadow_reader import ShadowReader
from consumers.shadow_settings import ShadowSettings
from deploy.embedded_kafka import EmbeddedKafka
from model_store.snapshot import OutboxMessage
from pipeline.classifier import Prediction
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.evaluation.delayed_labels import DelayedLabels
from pipeline.evaluation.shadow_scores import Role
from pipeline.record import Partition, Record
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings
from pipeline.user_error import UserError
from tests.waiting import wait_until

Headers = Sequence[tuple[str, bytes | None]]
DEADLINE_SECONDS = 30.0
NOW = 1_700_000_000.0  # seconds
STREAM = "pets"


def answer(request_id: str, role: Role, version: int, label: str | None, seconds: float, topic: str) -> OutboxMessage:
    """As a predictor writes it; `label` None: the payload could not be read."""
    request = Record("requests", 0, 0, b"x", headers=(("ce_id", request_id.encode()),))
    said = (
        BadRecord(DeadLetterReason.NO_PAYLOAD, "")
        if label is None
        else Prediction(label=label, probability=1.0, probabilities={label: 1.0})
    )
    data = answer_data(said, model=STREAM, version=version, role=role, top_k=1)
    return answer_message(request, data, topic=topic, stream=STREAM, now=seconds)


class World:
    """The three topics in memory, some of which may be missing; times are given as seconds before now."""

    def __init__(self, *missing: str, partitions: int = 1) -> None:
        self.now = NOW
        self.logs = {name: InMemoryLog(f"{STREAM}.{name}", partitions) for name in ("predictions", "shadow", "samples")}
        self.missing = set(missing)
        self.away: Exception | None = None
        self.opened = 0

    def source(self, name: str) -> RecordSource | None:
        if self.away is not None:
            raise self.away
        self.opened += 1
        return None if name in self.missing else InMemoryRecordSource(self.logs[name])

    def reader(self, *, most_back: int | None = None, **settings: float) -> ShadowReader:
        return ShadowReader(
            ShadowSettings.model_validate({"horizon_seconds": 100.0, "look_seconds": 0.05} | settings),
            RecordDecoder(InputSettings()),
            champion=lambda: self.source("predictions"),
            challenger=lambda: self.source("shadow"),
            samples=lambda: self.source("samples"),
            most_back=most_back,
            clock=lambda: self.now,
        )

    def answer(
        self, request_id: str, role: Role, version: int, label: str | None, *, ago: float = 0.0, partition: int = 0
    ) -> None:
        log = self.logs["predictions" if role == "champion" else "shadow"]
        message = answer(request_id, role, version, label, self.now - ago, log.topic)
        log.append(message.value, headers=message.headers, partition=partition, timestamp_ms=self._ms(ago))

    def both(self, request_id: str, champion: str | None, challenger: str | None, *, ago: float = 0.0) -> None:
        """Version 1 and version 2."""
        self.answer(request_id, "champion", 1, champion, ago=ago)
        self.answer(request_id, "challenger", 2, challenger, ago=ago)

    def label(self, request_id: str, label: str, *, ago: float = 0.0, partition: int = 0) -> None:
        headers = (("ce_id", request_id.encode()), ("ce_label", label.encode()), ("content-type", b"image/png"))
        self.logs["samples"].append(b"no image", headers=headers, partition=partition, timestamp_ms=self._ms(ago))

    def _ms(self, ago: float) -> int:
        return round((self.now - ago) * 1000)


def test_answers_and_the_labels_that_came_later() -> None:
    world = World()
    world.both("a", "cat", "cat", ago=50)
    world.both("b", "dog", "cat", ago=40)
    world.both("c", None, "cat", ago=30)
    world.answer("d", "champion", 1, "cat", ago=20)
    for name in ("a", "b", "c", "d", "never asked"):
        world.label(name, "cat", ago=10)
    with_json = (("ce_id", b"e"), ("content-type", b"application/json"))
    world.both("e", "dog", "dog", ago=9)
    world.logs["samples"].append(b'{"label": "dog"}', headers=with_json, timestamp_ms=round(NOW * 1000))
    labels = world.reader().read_to_end()
    score = labels.scores.pair_score(1, 2)
    assert (score.answered, score.labelled, score.agreement) == (4, 4, 0.5)
    assert (score.champion_accuracy, score.challenger_accuracy) == (0.5, 1.0)
    champion = labels.scores.version("champion", 1)
    assert champion is not None
    assert (champion.answered, champion.unreadable, champion.total.labelled, champion.total.right) == (5, 1, 5, 3)
    assert (labels.late, labels.dropped) == (0, {"answers": 0, "labels": 0})


def test_what_is_older_than_the_horizon_is_not_read_and_what_comes_after_it_is_late() -> None:
    world = World()
    world.both("old", "cat", "cat", ago=101)
    world.both("a", "cat", "cat", ago=99)
    reader = world.reader()
    assert reader.read_to_end().scores.answered == {"champion": 1, "challenger": 1}
    world.now += 2
    world.label("a", "cat")
    labels = reader.read_to_end()
    assert (labels.late, labels.scores.labelled["champion"]) == (1, 0)
    world.now += 1
    assert reader.read_to_end().open_ids == {"answers": 0, "labels": 0}


def test_it_goes_back_by_no_more_records_than_wanted() -> None:
    world = World(partitions=2)
    for number in range(40):
        for role in ("champion", "challenger"):
            world.answer(str(number), role, 1, "cat", ago=50 - number, partition=int(number % 4 == 0))
        world.label(str(number), "cat", ago=50 - number)
    labels = world.reader(most_back=20).read_to_end()
    assert labels.scores.answered == {"champion": 20, "challenger": 20}, "five of ten, and fifteen of thirty"
    assert labels.scores.pair_score(1, 1).labelled == 20
    assert world.reader(most_back=1_000).read_to_end().scores.answered == {"champion": 40, "challenger": 40}
    reader = world.reader(most_back=20, horizon_seconds=15.0)
    assert reader.read_to_end().scores.answered == {"champion": 5, "challenger": 5}, "the horizon is nearer"
    for number in range(100, 130):
        world.answer(str(number), "champion", 1, "cat")
    world.now += 1
    assert reader.read_to_end().scores.answered["champion"] == 35, "what comes later is read whole"


def test_what_is_no_answer_in_its_topic_is_passed_over() -> None:
    world = World()
    world.logs["predictions"].append(b"hello", timestamp_ms=round(NOW * 1000))
    message = answer("a", "challenger", 2, "cat", NOW, "x")
    world.logs["predictions"].append(message.value, headers=message.headers, timestamp_ms=round(NOW * 1000))
    assert world.reader().read_to_end().scores.answered == {"champion": 0, "challenger": 0}


def test_topics_that_do_not_exist_are_empty() -> None:
    world = World("predictions", "shadow", "samples")
    assert world.reader().read_to_end().scores.answered["champion"] == 0
    world = World("shadow")
    world.answer("a", "champion", 1, "cat", ago=1)
    reader = world.reader(look_seconds=1_000.0)
    reader.read_to_end()
    world.missing.clear()
    world.answer("a", "challenger", 2, "dog", ago=90)  # by a clock that is slow: it is new all the same
    assert reader.read_to_end().scores.pair_score(1, 2).answered == 1


def test_none_of_the_topics_runs_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """More answers than memory holds, each labelled a second later: all are scored, since they are read in step."""
    monkeypatch.setattr("consumers.shadow_reader._CHUNK_RECORDS", 20)
    world = World(partitions=2)  # the second one stays empty
    for number in range(900):
        world.both(str(number), "cat", "cat", ago=90 - number / 10)
        world.label(str(number), "cat", ago=89 - number / 10)
    labels = world.reader(most_open=200).read_to_end()
    assert labels.scores.pair_score(1, 2).labelled == 900
    assert labels.dropped["answers"] == 0


def test_a_log_that_was_cut_is_read_on_from_what_is_left() -> None:
    world = World()
    reader = world.reader()
    world.both("a", "cat", "cat")
    reader.read_to_end()
    for name in "bcd":
        world.both(name, "cat", "cat")
    world.logs["predictions"].truncate_before(0, 3)
    labels = reader.read_to_end()
    assert (labels.scores.answered, reader.cuts) == ({"champion": 2, "challenger": 4}, 1)
    world.now += 1
    world.logs["shadow"].make_anew()
    world.answer("d", "challenger", 2, "dog")  # a repeat
    world.answer("e", "challenger", 2, "cat")
    labels = reader.read_to_end()
    assert (labels.scores.answered, reader.cuts) == ({"champion": 2, "challenger": 5}, 2)
    world.now += 1
    world.logs["samples"].append_marker()
    world.label("e", "cat")
    reader.read_to_end()
    world.logs["samples"].lose_tail(0, 1)
    world.label("d", "cat")
    assert reader.read_to_end().scores.labelled == {"champion": 1, "challenger": 2}
    assert reader.cuts == 3


def test_new_partitions_are_read() -> None:
    world = World()
    reader = world.reader()
    reader.read_to_end()
    world.logs["predictions"].add_partitions(1)
    world.answer("a", "champion", 1, "cat", partition=1)
    world.now += 1
    assert reader.read_to_end().scores.answered["champion"] == 1


class BrokenSource(InMemoryRecordSource):
    """What lies at its beginning cannot be read."""

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        if min(self.positions().values()) == 0:
            raise RecordUnreadable("offset 0 cannot be read")
        return super().poll(max_records, timeout_seconds)


def test_what_cannot_be_read_is_skipped_with_what_lies_there() -> None:
    world = World()
    world.both("a", "cat", "cat")
    reader = ShadowReader(
        ShadowSettings(),
        RecordDecoder(InputSettings()),
        champion=lambda: BrokenSource(world.logs["predictions"]),
        challenger=lambda: world.source("shadow"),
        samples=lambda: world.source("samples"),
        clock=lambda: world.now,
    )
    world.now += 1
    labels = reader.read_to_end()
    assert (labels.scores.answered, reader.cuts) == ({"champion": 0, "challenger": 1}, 1)
    world.both("b", "cat", "cat")
    world.now += 1
    assert reader.read_to_end().scores.answered == {"champion": 1, "challenger": 2}


class AwaySource(InMemoryRecordSource):
    """Its brokers went away after it was opened: it polls as an empty log does."""

    is_away = False

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        return [] if self.is_away else super().poll(max_records, timeout_seconds)

    def end_offsets(self) -> dict[Partition, int]:
        if self.is_away:
            raise SourceUnavailable("the brokers do not answer")
        return super().end_offsets()


def reader_of_champion(world: World, source: RecordSource) -> ShadowReader:
    """Neither a challenger's answers nor labels are there."""
    return ShadowReader(
        ShadowSettings(),
        RecordDecoder(InputSettings()),
        champion=lambda: source,
        challenger=lambda: None,
        samples=lambda: None,
        clock=lambda: world.now,
    )


def test_reading_to_the_end_says_that_brokers_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_topic, "_ENDS_SECONDS", 0.01)
    world = World()
    world.away = UserError("nobody at home")
    with pytest.raises(UserError, match="nobody at home"):
        world.reader().read_to_end()
    world.both("a", "cat", "cat")
    source = AwaySource(world.logs["predictions"])
    reader = reader_of_champion(world, source)
    reader.read_to_end()
    world.both("b", "cat", "cat")
    world.now += 1
    source.is_away = True
    with pytest.raises(SourceUnavailable):
        reader.read_to_end()
    source.is_away = False
    assert reader.read_to_end().scores.answered["champion"] == 2


class LeaderlessSource(InMemoryRecordSource):
    """What the client says of a partition that moves from one broker to another."""

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        raise kafka_errors.NotLeaderForPartitionError("predictions-0")


def test_reading_to_the_end_says_what_the_client_says_as_it_says_that_brokers_are_away() -> None:
    world = World()
    world.both("a", "cat", "cat")
    reader = reader_of_champion(world, LeaderlessSource(world.logs["predictions"]))
    with pytest.raises(SourceUnavailable, match="predictions-0"):
        reader.read_to_end()


def test_a_stop_is_heard() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(ReadingStopped):
        World().reader().read_to_end(stop)


class Shown:
    """What the reader's thread showed last, and what it warned of."""

    def __init__(self) -> None:
        self.labels: DelayedLabels | None = None
        self.times = 0
        self.warnings: list[str] = []

    def __call__(self, labels: DelayedLabels, cuts: int) -> None:
        self.labels = labels
        self.times += 1

    def answered(self, role: Role) -> int:
        return 0 if self.labels is None else self.labels.scores.answered[role]

    def labelled(self, role: Role) -> int:
        return 0 if self.labels is None else self.labels.scores.labelled[role]


@contextmanager
def running(reader: ShadowReader) -> Iterator[Shown]:
    """The reader in a thread of its own."""
    stop, shown = threading.Event(), Shown()
    thread = threading.Thread(target=reader.run, args=(stop,), kwargs={"shown": shown, "warned": shown.warnings.append})
    thread.start()
    try:
        yield shown
    finally:
        stop.set()
        thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


def test_a_thread_goes_on_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.shadow_reader._SHOW_SECONDS", 0.05)
    world = World("shadow")
    world.away = UserError("nobody at home")
    with running(world.reader()) as shown:
        wait_until(lambda: shown.warnings == ["nobody at home"] * 3)  # once for each topic
        world.away = None
        world.answer("a", "champion", 1, "cat")
        wait_until(lambda: shown.answered("champion") == 1)
        world.missing.clear()
        world.answer("a", "challenger", 2, "cat")
        wait_until(lambda: shown.answered("challenger") == 1)
        world.label("a", "cat")
        wait_until(lambda: shown.labelled("challenger") == 1)
        for log in world.logs.values():
            log.make_anew()
        world.both("b", "cat", "cat")
        wait_until(lambda: shown.answered("challenger") == 2)
        assert shown.warnings == ["nobody at home"] * 3
        before = shown.times
        wait_until(lambda: shown.times > before)


def test_what_a_broker_says_unforeseen_ends_no_thread() -> None:
    world = World()
    world.away = kafka_errors.UnknownError()
    with running(world.reader()) as shown:
        wait_until(lambda: len(shown.warnings) == 3)
        assert "UnknownError" in shown.warnings[0]
        world.away = None
        world.answer("a", "champion", 1, "cat")
        wait_until(lambda: shown.answered("champion") == 1)


class KafkaWorld:
    """The topics at a broker; what is written is there when the call returns."""

    def __init__(self, broker: EmbeddedKafka, stream: str) -> None:
        self.kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        self.stream = stream
        self._producer = confluent_kafka.Producer({"bootstrap.servers": broker.bootstrap_servers})

    def reader(self, horizon_seconds: float) -> ShadowReader:
        return ShadowReader(
            ShadowSettings(horizon_seconds=horizon_seconds, look_seconds=0.2),
            RecordDecoder(InputSettings()),
            champion=kafka_topic(self.kafka, topics.predictions(self.stream)),
            challenger=kafka_topic(self.kafka, topics.shadow(self.stream)),
            samples=kafka_topic(self.kafka, topics.samples(self.stream)),
        )

    def make(self, name: str, partitions: int) -> None:
        with kafka_connection.admin(self.kafka) as admin:
            admin.create_topics({name: {"num_partitions": partitions, "replication_factor": 1}})
            admin.wait_for_topics([name])

    def answer(self, request_id: str, role: Role, version: int, label: str, *, ago: float = 0.0) -> None:
        topic = topics.predictions(self.stream) if role == "champion" else topics.shadow(self.stream)
        seconds = time.time() - ago
        message = answer(request_id, role, version, label, seconds, topic)
        self._write(topic, message.value, message.headers, seconds)

    def label(self, request_id: str, label: str) -> None:
        headers: Headers = [("ce_id", request_id.encode()), ("ce_label", label.encode())]
        self._write(topics.samples(self.stream), b"x", headers, time.time())

    def _write(self, topic: str, value: bytes | None, headers: Headers, seconds: float) -> None:
        self._producer.produce(topic, value, headers=list(headers), timestamp=round(seconds * 1000))
        assert self._producer.flush(DEADLINE_SECONDS) == 0


@pytest.mark.kafka
def test_answers_and_labels_at_a_broker(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    world = KafkaWorld(kafka_broker, stream_name)
    topics.ensure_source_topics(world.kafka, stream_name, partitions=2)
    horizon_seconds = 1_000.0
    with running(world.reader(horizon_seconds)) as shown:
        # the topics of answers are missing at first
        world.label("never asked", "cat")
        wait_until(lambda: shown.labels is not None and shown.labels.open_ids["labels"] == 1)
        world.make(topics.predictions(stream_name), 2)
        world.answer("late", "champion", 1, "cat", ago=horizon_seconds - 1)  # about to be too old
        wait_until(lambda: shown.answered("champion") == 1)
        for number in range(40):
            world.answer(str(number), "champion", 1, "cat")
        wait_until(lambda: shown.answered("champion") == 41)
        world.make(topics.shadow(stream_name), 1)
        for number in range(40):
            world.answer(str(number), "challenger", 2, "cat" if number % 2 else "dog")
        wait_until(lambda: shown.answered("challenger") == 40)
        wait_until(lambda: shown.labels is not None and shown.labels.remembered_expired == 1)
        world.label("late", "cat")
        for number in range(40):
            world.label(str(number), "cat")
        wait_until(lambda: shown.labelled("challenger") == 40)
        wait_until(lambda: shown.labels is not None and shown.labels.late == 1)
        assert shown.warnings == []
        assert shown.labels is not None
        live = shown.labels.scores.pair_score(1, 2)
    assert (live.answered, live.labelled, live.agreement) == (40, 40, 0.5)
    assert (live.champion_accuracy, live.challenger_accuracy) == (1.0, 0.5)
    again = world.reader(horizon_seconds)
    assert again.read_to_end().scores.pair_score(1, 2) == live
    again.close()
