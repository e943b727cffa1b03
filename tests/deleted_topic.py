"""A topic's deletion is acknowledged a moment before the brokers forget the topic."""

from __future__ import annotations

import time

from consumers import kafka_connection
from consumers.kafka_settings import KafkaSettings

DEADLINE_SECONDS = 60.0


def delete_topic(kafka: KafkaSettings, name: str) -> None:
    """Delete it, and wait until it is not shown any more: whoever makes it anew finds none."""
    with kafka_connection.admin(kafka) as admin:
        admin.delete_topics([name])
        deadline = time.monotonic() + DEADLINE_SECONDS
        while admin.describe_topics([name])[0]["error_code"] == 0:
            assert time.monotonic() < deadline, f"{name} is still there"
            time.sleep(0.02)
