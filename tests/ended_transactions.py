"""A transaction's commit is acknowledged a moment before the brokers have written its markers and show its records."""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from consumers.kafka_settings import KafkaSettings

DEADLINE_SECONDS = 60.0


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

    deadline = time.monotonic() + seconds
    while ends(IsolationLevel.READ_COMMITTED) != ends(IsolationLevel.READ_UNCOMMITTED):
        assert time.monotonic() < deadline, f"a transaction of {topic} is still open"
        time.sleep(0.02)
