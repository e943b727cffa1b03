"""A stream's own topics on Kafka, opened to be read back by the learner that writes them."""

from __future__ import annotations

from consumers import kafka_connection
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.record_source import SourceUnavailable
from consumers.told_before import Reports
from pipeline.record import Partition


def kafka_reports(settings: KafkaSettings, *, stream: str, branch: str) -> Reports:
    """`Reports` that read Kafka; the topics are there (`topics.ensure_report_topics`)."""

    def open_source(topic: str) -> KafkaRecordSource:
        try:
            with kafka_connection.admin(settings) as admin, kafka_connection.talking(settings):
                (described,) = admin.describe_topics([topic])
            return KafkaRecordSource(
                settings, [Partition(topic, entry["partition_index"]) for entry in described["partitions"]]
            )
        except kafka_connection.BrokersUnreachable as error:  # brokers that let us in before: they are away
            raise SourceUnavailable(str(error)) from error

    return Reports(open_source, stream=stream, branch=branch)
