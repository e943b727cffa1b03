"""A transaction's commit is acknowledged a moment before the brokers have written its markers and show its records."""

from __future__ import annotations

from typing import Any

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from consumers.kafka_settings import KafkaSettings
from tests.waiting import DEADLINE_SECONDS, wait_until


def wait_until_transactions_ended(kafka: KafkaSettings, topic: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Until readers of committed records see the whole topic."""
    assert kafka.bootstrap_servers is not None
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    partitions = [
        TopicPartition(topic, number) for number in admin.list_topics(topic, timeout=seconds).topics[topic].partitions
    ]

    def ends(isolation_level: IsolationLevel) -> list[int]:
        latest: Any = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = admin.list_offsets(
            dict.fromkeys(partitions, latest), isolation_level=isolation_level, request_timeout=seconds
        )
        return [asked[partition].result().offset for partition in partitions]

    def are_ended() -> bool:
        return ends(IsolationLevel.READ_COMMITTED) == ends(IsolationLevel.READ_UNCOMMITTED)

    wait_until(are_ended, seconds, otherwise=f"a transaction of {topic} is still open")
