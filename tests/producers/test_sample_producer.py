"""Against the real broker: what was planned lies in the log, in that order."""

from __future__ import annotations

import re
import threading
import time

import numpy as np
import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from consumers import kafka_connection, topics
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.record import Record
from pipeline.settings import InputSettings
from pipeline.user_error import UserError
from producers import sample_producer
from producers.datasets import open_dataset
from producers.sample_producer import ProduceProgress, produce
from producers.sample_stream import OutgoingRecord, SampleStream
from producers.schedules import open_schedule
from tests.producers.made_datasets import TellingDataset

pytestmark = pytest.mark.kafka

SPLIT = open_schedule("split")
DEADLINE_SECONDS = 30.0


@pytest.fixture
def kafka(kafka_broker: EmbeddedKafka) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers)


def lying_in(kafka: KafkaSettings, topic: str) -> dict[int, list[ConsumerRecord]]:
    """{partition: its records, from the first to the last}."""
    with kafka_connection.consumer(kafka) as consumer:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(partitions)
        read: dict[int, list[ConsumerRecord]] = {partition.partition: [] for partition in partitions}
        deadline = time.monotonic() + DEADLINE_SECONDS
        while any(len(read[partition.partition]) < ends[partition] for partition in partitions):
            assert time.monotonic() < deadline, f"{topic} was not read to its end"
            for partition, records in consumer.poll(timeout_ms=200).items():
                read[partition.partition] += records
    return read


def planned(stream: SampleStream, *, labelled: bool) -> list[OutgoingRecord]:
    return [record for record in stream if record.labelled == labelled]


def test_the_log_is_the_stream(kafka: KafkaSettings, stream_name: str) -> None:
    stream = SampleStream(
        open_dataset("digits"), open_schedule("blurred"), seed=5, records=2_000, unlabelled_share=0.15
    )
    before = time.time()
    report = produce(stream, stream_name=stream_name, kafka=kafka)
    assert (report.labelled, report.unlabelled, report.total, report.stopped) == (1_700, 300, 2_000, False)
    for labelled, topic in ((True, topics.samples(stream_name)), (False, topics.unlabelled(stream_name))):
        (log,) = lying_in(kafka, topic).values()
        expected = planned(stream, labelled=labelled)
        assert [record.value for record in log] == [record.event.data for record in expected]
        for record, sent in zip(log, expected, strict=True):
            headers = dict(record.headers)
            ce_time = headers.pop("ce_time").decode()
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", ce_time)
            assert headers == dict(sent.event.headers())
            assert record.key is None
            assert before * 1000 - 1 <= record.timestamp <= time.time() * 1000 + 1


def test_parts_are_the_stream_too(kafka: KafkaSettings, stream_name: str) -> None:
    stream = SampleStream(open_dataset("digits"), open_schedule("blurred"), seed=5, records=200, unlabelled_share=0.15)
    told: list[int] = []
    for numbers in (range(120), range(120, 200)):
        report = produce(
            stream,
            stream_name=stream_name,
            kafka=kafka,
            numbers=numbers,
            on_progress=lambda now: told.append(now.total),
        )
        assert (report.delivered, report.total, report.stopped) == (len(numbers), len(numbers), False)
        assert told[-1] == len(numbers)
    (log,) = lying_in(kafka, topics.samples(stream_name)).values()
    assert [record.value for record in log] == [record.event.data for record in planned(stream, labelled=True)]


def test_the_decoder_reads_what_was_sent(kafka: KafkaSettings, stream_name: str) -> None:
    dataset = open_dataset("digits")
    produce(SampleStream(dataset, SPLIT, records=50), stream_name=stream_name, kafka=kafka)
    (log,) = lying_in(kafka, topics.samples(stream_name)).values()
    decoder = RecordDecoder(InputSettings())
    for number, record in enumerate(log):
        sample = decoder.decode(
            Record(record.topic, record.partition, record.offset, record.value, headers=record.headers)
        ).sample
        assert sample is not None
        assert (sample.x.dtype, sample.x.shape) == (np.dtype(np.uint8), (1, 8, 8))
        assert sample.id == f"digits-0-{number}"
        assert sample.subject is not None
        item = int(sample.subject.removeprefix("digits/"))
        assert sample.label == dataset.classes[int(dataset.labels[item])]
        assert sample.task == str(int(sample.label) // 2)
        assert sample.event_time_seconds == pytest.approx(time.time(), abs=60)


def test_several_partitions_take_turns(kafka: KafkaSettings, stream_name: str) -> None:
    stream = SampleStream(TellingDataset({"a": 30, "b": 20}), SPLIT, unlabelled_share=0.2)
    produce(stream, stream_name=stream_name, kafka=kafka, partitions=3)
    for labelled, topic in ((True, topics.samples(stream_name)), (False, topics.unlabelled(stream_name))):
        expected = [record.event.data for record in planned(stream, labelled=labelled)]
        log = lying_in(kafka, topic)
        assert {number: [record.value for record in log[number]] for number in log} == {
            number: expected[number::3] for number in range(3)
        }


def test_a_topic_that_is_there_keeps_its_partitions(kafka: KafkaSettings, stream_name: str) -> None:
    topics.ensure_source_topics(kafka, stream_name, partitions=2)
    report = produce(SampleStream(TellingDataset({"a": 5}), SPLIT), stream_name=stream_name, kafka=kafka, partitions=4)
    assert report.delivered == 5
    assert sorted(lying_in(kafka, topics.samples(stream_name))) == [0, 1]


def test_progress_is_told_and_ends_at_the_total(
    kafka: KafkaSettings, stream_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_producer, "PROGRESS_SECONDS", 0.0)
    told: list[ProduceProgress] = []
    stream = SampleStream(TellingDataset({"a": 40}), SPLIT)
    produce(stream, stream_name=stream_name, kafka=kafka, on_progress=told.append)
    assert len(told) == 41, "before each record, and at the end"
    assert told[-1].delivered == told[-1].sent == told[-1].total == 40
    assert all(progress.delivered <= progress.sent <= progress.total for progress in told)
    assert [progress.delivered for progress in told] == sorted(progress.delivered for progress in told)


def test_the_rate_is_kept(kafka: KafkaSettings, stream_name: str) -> None:
    stream = SampleStream(TellingDataset({"a": 60}), SPLIT)
    report = produce(stream, stream_name=stream_name, kafka=kafka, records_per_second=100.0)
    assert report.seconds >= 0.59  # the 60th is due 59 / 100 s after the first; a slow machine takes longer


def test_stopping_delivers_what_was_sent_and_says_how_much(kafka: KafkaSettings, stream_name: str) -> None:
    stop = threading.Event()

    def stop_when_some_are_sent(progress: ProduceProgress) -> None:
        if progress.sent >= 20:
            stop.set()

    stream = SampleStream(TellingDataset({"a": 10}), SPLIT, records=100_000)
    report = produce(
        stream,
        stream_name=stream_name,
        kafka=kafka,
        records_per_second=200.0,
        on_progress=stop_when_some_are_sent,
        stop=stop,
    )
    assert report.stopped
    assert 20 <= report.delivered < 100_000
    (log,) = lying_in(kafka, topics.samples(stream_name)).values()
    assert [record.value for record in log] == [stream.record(number).event.data for number in range(report.delivered)]


def test_a_stop_ends_a_long_wait(kafka: KafkaSettings, stream_name: str) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)

    class StoppingSoon(TellingDataset):
        def payload(self, i: int) -> tuple[bytes, str]:
            if made:  # the second record, which is due in a quarter of an hour
                timer.start()
            made.append(i)
            return super().payload(i)

    made: list[int] = []
    stream = SampleStream(StoppingSoon({"a": 10}), SPLIT)
    report = produce(stream, stream_name=stream_name, kafka=kafka, records_per_second=0.001, stop=stop)
    timer.join()
    assert (report.delivered, report.stopped) == (1, True)


def test_a_record_that_the_broker_refuses_is_an_error_with_the_count(kafka: KafkaSettings, stream_name: str) -> None:
    with kafka_connection.admin(kafka) as admin:
        shape = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "100"}}
        admin.create_topics({topics.samples(stream_name): shape})
    stream = SampleStream(TellingDataset({"a": 3}), SPLIT)
    with pytest.raises(UserError, match=r"samples were not delivered \(.*TooLarge.*; 0 of 3 had been"):
        produce(stream, stream_name=stream_name, kafka=kafka)


def test_batches_that_the_broker_finds_too_large_are_sent_in_parts(kafka: KafkaSettings, stream_name: str) -> None:
    with kafka_connection.admin(kafka) as admin:
        shape = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "2000"}}
        admin.create_topics({topics.samples(stream_name): shape})
    stream = SampleStream(open_dataset("digits"), SPLIT, records=300)
    assert produce(stream, stream_name=stream_name, kafka=kafka).delivered == 300
    (log,) = lying_in(kafka, topics.samples(stream_name)).values()
    assert [record.value for record in log] == [record.event.data for record in stream]


def test_a_payload_beyond_any_limit_is_named(kafka: KafkaSettings, stream_name: str) -> None:
    class Large(TellingDataset):
        def payload(self, i: int) -> tuple[bytes, str]:
            return bytes(2_000_000), "text/plain"

    with pytest.raises(UserError, match="telling/0 has 2000000 bytes"):
        produce(SampleStream(Large({"a": 1}), SPLIT), stream_name=stream_name, kafka=kafka)


def test_no_broker_is_one_clear_line() -> None:
    stream = SampleStream(TellingDataset({"a": 1}), SPLIT)
    with pytest.raises(UserError, match="palimpsest broker start"):
        produce(
            stream,
            stream_name="s",
            kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1", connect_timeout_seconds=0.5),
        )


def test_names_and_rates_that_are_none(kafka: KafkaSettings) -> None:
    stream = SampleStream(TellingDataset({"a": 1}), SPLIT)
    with pytest.raises(UserError, match="stream name 'a b'"):
        produce(stream, stream_name="a b", kafka=kafka)
    with pytest.raises(UserError, match="--rate"):
        produce(stream, stream_name="s", kafka=kafka, records_per_second=0.0)
