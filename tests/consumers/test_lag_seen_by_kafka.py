"""The lag of a learner as tools for Kafka show it: 0 where all was read, transactions' markers included."""

from __future__ import annotations

import time
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from consumers import topics
from consumers.commit_log import transactional_id
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from tests.consumers.digit_records import digit_stream
from tests.consumers.test_learner_process_kafka import KafkaWorld
from tests.ended_transactions import wait_until_transactions_ended

pytestmark = pytest.mark.kafka

DEADLINE_SECONDS = 60.0
PARTITIONS = 8


def described(servers: str, group: str, topic: str) -> dict[int, tuple[int, int]]:
    """(LOG-END-OFFSET, LAG) of each partition, by the two questions that `kafka-consumer-groups.sh --describe` asks.

    Through librdkafka: the command itself is not among the jars that a broker needs. As there, the end is that of all
    records, whether their transaction is over or not.
    """
    admin = AdminClient({"bootstrap.servers": servers})
    (asked,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    committed = {found.partition: found.offset for found in asked.result(DEADLINE_SECONDS).topic_partitions}
    partitions = [confluent_kafka.TopicPartition(topic, number) for number in range(PARTITIONS)]
    latest = admin.list_offsets({each: OffsetSpec.latest() for each in partitions})  # type: ignore[no-untyped-call]
    ends = {theirs.partition: future.result(DEADLINE_SECONDS).offset for theirs, future in latest.items()}
    return {number: (end, end - committed[number]) for number, end in sorted(ends.items())}


def test_lag_is_0_behind_committed_and_aborted_transactions(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    kafka = KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers)
    topics.ensure_source_topics(kafka, stream_name, partitions=PARTITIONS)
    world = KafkaWorld(kafka_broker, stream_name, tmp_path)
    topic = topics.samples(stream_name)
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": kafka_broker.bootstrap_servers, "transactional.id": stream_name}
    )
    producer.init_transactions(DEADLINE_SECONDS)
    # 0, 1, 2: committed, and a marker; 3, 4: committed, then aborted, and two markers; 5, 6: aborted only; 7: empty.
    records = digit_stream(10)
    for is_committed, written_to in ((True, range(5)), (False, range(3, 7))):
        producer.begin_transaction()
        for number, record in enumerate(records):
            partition = written_to[number % len(written_to)]
            producer.produce(topic, record.value, record.key, partition, headers=list(record.headers))
        assert producer.flush(DEADLINE_SECONDS) == 0
        if is_committed:
            producer.commit_transaction(DEADLINE_SECONDS)
        else:
            producer.abort_transaction(DEADLINE_SECONDS)
    wait_until_transactions_ended(kafka, topic)
    world.learn()
    group = transactional_id(stream_name, "main")

    def wait_for_lags(*lags: int) -> list[int]:
        """The ends then: a commit is acknowledged a moment before the group shows its offsets."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            rows = described(kafka_broker.bootstrap_servers, group, topic)
            if (found := tuple(lag for _, lag in rows.values())) == lags:
                return [end for end, _ in rows.values()]
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    ends = wait_for_lags(*[0] * PARTITIONS)
    assert sum(ends) == 2 * len(records) + 5 + 4, "all records, and each transaction's markers"
    assert ends[7] == 0
    # What is not yet read is shown too, partition by partition.
    producer.begin_transaction()
    for _ in range(3):
        producer.produce(topic, records[0].value, records[0].key, 6, headers=list(records[0].headers))
    producer.commit_transaction(DEADLINE_SECONDS)
    wait_for_lags(0, 0, 0, 0, 0, 0, 4, 0)  # three records and their marker
