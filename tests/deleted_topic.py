"""A topic's deletion is acknowledged a moment before the brokers forget the topic."""

from __future__ import annotations

from consumers import kafka_connection
from consumers.kafka_settings import KafkaSettings
from tests.waiting import wait_until


def delete_topic(kafka: KafkaSettings, name: str) -> None:
    """Delete it, and wait until it is not shown any more: whoever makes it anew finds none."""
    with kafka_connection.admin(kafka) as admin:
        admin.delete_topics([name])
        wait_until(lambda: admin.describe_topics([name])[0]["error_code"] != 0, otherwise=f"{name} is still there")
