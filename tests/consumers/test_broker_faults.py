"""A broker that is killed, loses the newest records, or has its topic taken away, under sources that are reading.

The broker is this module's own: it is killed and started again under the tests.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import confluent_kafka
import pytest
from kafka import TopicPartition

from consumers import kafka_connection, kafka_record_source, learner_process, topics
from consumers.commit_log import transactional_id
from consumers.decode_ahead import DecodeAhead, Idle
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.log_gap import find_gaps
from consumers.record_source import LogTruncated, record_checksum
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.record import Partition, Record
from pipeline.sample import BadRecord, DeadLetterReason, Decoded
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import Witness
from tests.consumers.test_learner_process_kafka import KafkaWorld
from tests.deleted_topic import delete_topic
from tests.waiting import wait_until

pytestmark = pytest.mark.kafka

DEADLINE_SECONDS = 60.0


@pytest.fixture
def broker(mortal_broker: EmbeddedKafka) -> EmbeddedKafka:
    return mortal_broker


class Log:
    """One stream's samples, one partition."""

    def __init__(self, broker: EmbeddedKafka, stream: str) -> None:
        self.broker = broker
        self.stream = stream
        self.settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        topics.ensure_source_topics(self.settings, stream)
        self.samples = topics.check_samples_topic(self.settings, stream)
        (self.partition,) = self.samples.partitions

    def write(self, values: Sequence[bytes]) -> None:
        """Each in a batch of its own: a broker loses whole batches."""
        producer = confluent_kafka.Producer({"bootstrap.servers": self.settings.bootstrap_servers})
        for value in values:
            producer.produce(self.samples.topic, value, partition=0)
            assert producer.flush(DEADLINE_SECONDS) == 0

    def source(self) -> KafkaRecordSource:
        return KafkaRecordSource(self.settings, self.samples.partitions, self.samples.topic_id)

    def lose_from(self, offset: int) -> None:
        """The segment ends in the midst of this batch, as when the page cache was not written. The broker is down."""
        assert not self.broker.is_running
        segment = self.broker.data_dir / "data" / f"{self.samples.topic}-0" / f"{0:020}.log"
        data, at = segment.read_bytes(), 0
        while int.from_bytes(data[at : at + 8], "big") < offset:
            at += 12 + int.from_bytes(data[at + 8 : at + 12], "big")
        assert int.from_bytes(data[at : at + 8], "big") == offset
        with segment.open("r+b") as file:
            file.truncate(at + 7)

    def delete_topic(self) -> None:
        delete_topic(self.settings, self.samples.topic)


def read(source: KafkaRecordSource, count: int) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(records) < count:
        assert time.monotonic() < deadline, records
        records += source.poll(count - len(records), 0.1)
    return records


def poll_for_ever(source: KafkaRecordSource, allowed: Sequence[bytes] = ()) -> Callable[[], bool]:
    def poll() -> bool:
        for record in source.poll(10, 0.1):
            assert record.value in allowed, f"{record.value!r} was read at {record.offset}, which it must not be"
        return False

    return poll


def test_a_tail_that_the_broker_lost_is_noticed_while_running(broker: EmbeddedKafka, stream_name: str) -> None:
    """Ten records were read, and the broker comes back with six: noticed whether or not the log has grown past ten
    again, because it comes back in a new leader epoch and says where the one before ended."""
    shrunk, regrown, sought, untouched = (Log(broker, f"{stream_name}-{n}") for n in range(4))
    sources = {}
    for log in (shrunk, regrown, sought, untouched):
        log.write([b"%d" % n for n in range(10)])
        sources[log] = log.source()
    for log in (shrunk, regrown, untouched):
        read(sources[log], 10)
    # A learner that has just started: it has asked where the log ends, and has read nothing yet.
    assert sources[sought].end_offsets() == {sought.partition: 10}
    sources[sought].seek({sought.partition: 10})
    assert sources[sought].poll(10, 0.3) == []
    broker.kill()
    for log in (shrunk, regrown, sought):
        log.lose_from(6)
    broker.start()
    for log in (regrown, sought, untouched):
        log.write([b"new %d" % n for n in range(20)])
    lost = "lost its tail from offset 6 on"
    for log, expected in ((regrown, lost), (sought, lost), (shrunk, f"{lost}|{shrunk.partition} offset 10")):
        with pytest.raises(LogTruncated, match=expected):
            wait_until(poll_for_ever(sources[log]))
        with pytest.raises(LogTruncated):  # the client by itself would go on at the next call
            sources[log].poll(10, 0.1)
    assert [record.offset for record in read(sources[untouched], 20)] == list(range(10, 30))
    # Past the end is past the end for good: positions of a new epoch are good ones, also where nothing was read in it.
    sources[untouched].seek({untouched.partition: 30})
    assert sources[untouched].poll(10, 0.3) == []
    for source in sources.values():
        source.close()


def test_a_tail_lost_while_no_learner_runs_is_noticed_by_the_next_start(
    broker: EmbeddedKafka, stream_name: str
) -> None:
    """The log has grown past the state's offset again: only the last record's checksum tells."""
    log = Log(broker, stream_name)
    log.write([b"%d" % n for n in range(10)])
    with log.source() as source:
        last = read(source, 10)[-1]
    facts = {
        "cluster_id": log.samples.cluster_id,
        "topic_id": log.samples.topic_id,
        "last_records": [[last.topic, last.partition, last.offset, record_checksum(last)]],
    }

    def gaps() -> list[str]:
        with log.source() as source:
            found = find_gaps(
                facts,  # type: ignore[arg-type]
                source,
                {log.partition: 10},
                cluster_id=log.samples.cluster_id,
                topic_id=log.samples.topic_id,
            )
            return [gap.why for gap in found]

    assert gaps() == []
    broker.kill()
    log.lose_from(6)
    broker.start()
    log.write([b"new %d" % n for n in range(20)])
    (why,) = gaps()
    assert f"{log.partition} offset 9" in why


def test_what_was_deleted_before_it_was_read_is_an_error_while_running(broker: EmbeddedKafka, stream_name: str) -> None:
    """As retention and kafka-delete-records.sh do it. Below the position it does not matter."""
    log = Log(broker, stream_name)
    log.write([b"%d" % n for n in range(10)])

    def delete_before(offset: int) -> None:
        with kafka_connection.admin(log.settings) as admin:
            admin.delete_records({TopicPartition(log.samples.topic, 0): offset})

    with log.source() as source:
        read(source, 10)
        delete_before(5)
        log.write([b"10"])
        assert [record.value for record in read(source, 1)] == [b"10"]
        source.seek({log.partition: 6})
        delete_before(8)
        with pytest.raises(LogTruncated, match=f"{log.partition} offset 6: retention deleted it"):
            wait_until(poll_for_ever(source, allowed=[b"6", b"7", b"8", b"9", b"10"]))


def undecodable(record: Record) -> Decoded:
    return Decoded(record, None, BadRecord(DeadLetterReason.NO_LABEL, "not of interest here"))


@pytest.mark.parametrize("made_anew", ["at once", "later", "never"])
def test_a_topic_that_is_deleted_under_a_reader(
    broker: EmbeddedKafka, stream_name: str, monkeypatch: pytest.MonkeyPatch, made_anew: str
) -> None:
    """Kafka's client reads on in the new topic where it was in the old one, once that has grown so far."""
    # A busy machine may need long to make it again.
    missing_seconds = 1.0 if made_anew == "never" else 120.0
    monkeypatch.setattr(kafka_record_source, "_MISSING_IS_DELETED_SECONDS", missing_seconds)
    log = Log(broker, stream_name)
    log.write([b"%d" % n for n in range(10)])
    with log.source() as source, DecodeAhead(source, undecodable, 100, poll_seconds=0.1, refresh_seconds=0.5) as ahead:
        wait_until(lambda: isinstance(ahead.take(0.1), Idle) and ahead.lag_records == {log.partition: 0})
        log.delete_topic()
        if made_anew == "later":
            wait_until(lambda: ahead._unavailable_since is not None)
        if made_anew != "never":
            topics.ensure_source_topics(log.settings, stream_name)
            log.write([b"new %d" % n for n in range(20)])
        # Whichever is seen first: another id, or that the log of the new topic knows nothing of the position.
        anew = r"made anew|lost its tail from offset \d+ on"
        with pytest.raises(LogTruncated, match="deleted while it was read" if made_anew == "never" else anew):
            wait_until(lambda: ahead.take(0.1) is None)


def test_partitions_that_come_while_a_learner_runs_and_while_none_does(
    broker: EmbeddedKafka, stream_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = KafkaWorld(broker, stream_name, tmp_path)
    records = digit_stream(40)
    parts = [records[:30], records[30:60], records[60:90], records[90:]]
    topic = topics.samples(stream_name)

    def write(part: int, partition: int) -> None:
        producer = confluent_kafka.Producer({"bootstrap.servers": broker.bootstrap_servers})
        for record in parts[part]:
            producer.produce(topic, record.value, record.key, partition, headers=list(record.headers))
        assert producer.flush(DEADLINE_SECONDS) == 0

    def grow_to(count: int) -> None:
        with kafka_connection.admin(world.kafka) as admin:
            admin.create_partitions({topic: count})
        wait_until(lambda: len(topics.check_samples_topic(world.kafka, stream_name).partitions) == count)
        world.samples = topics.check_samples_topic(world.kafka, stream_name)

    monkeypatch.setattr(learner_process, "DecodeAhead", functools.partial(DecodeAhead, refresh_seconds=0.2))
    write(0, 0)
    stop = threading.Event()
    witness = Witness()
    with world.process(observer=witness, every_records=20) as process:
        thread = threading.Thread(target=process.run, kwargs={"stop": stop})
        thread.start()
        try:
            wait_until(lambda: process.learner.records_consumed > 0)
            grow_to(2)
            write(1, 1)
            wait_until(lambda: any(p.number == 1 for step in witness.steps for p in step.batch.next_offsets))
        finally:
            stop.set()
            thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    grow_to(3)
    write(2, 2)
    write(3, 0)
    world.learn(observer=witness)
    consumed = [
        (partition, offset) for step in witness.steps for partition, offset in sorted(step.batch.next_offsets.items())
    ]
    for number, count in enumerate([len(parts[0]) + len(parts[3]), len(parts[1]), len(parts[2])]):
        offsets = [offset for partition, offset in consumed if partition.number == number]
        assert offsets == sorted(set(offsets)), "each stretch once, in order"
        assert offsets[-1] == count
    assert sum(step.batch.records for step in witness.steps) == len(records)
    group = transactional_id(stream_name, "main")
    with kafka_connection.admin(world.kafka) as admin:

        def committed() -> dict[int, int]:
            offsets = admin.list_group_offsets({group: None})[group]
            return {tp.partition: entry.offset for tp, entry in offsets.items()}

        wait_until(lambda: committed() == {0: len(parts[0]) + len(parts[3]), 1: len(parts[1]), 2: len(parts[2])})
    assert {Partition(topic, number) for number in range(3)} == set(world.samples.partitions)
