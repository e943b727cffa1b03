"""Reading back what was told, from brokers that go away and for learners that are to stop."""

from __future__ import annotations

import threading

import pytest

from consumers.kafka_reports import kafka_reports
from consumers.kafka_settings import KafkaSettings
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.record_source import RecordSource, SourceUnavailable
from consumers.told_before import Reports
from deploy.local_port import free_port
from pipeline.record import Partition, Record


def log_of(topic: str) -> InMemoryLog:
    log = InMemoryLog(topic)
    log.append(b"somebody else's")
    return log


class BrokersAway(InMemoryRecordSource):
    """Nothing comes; after the first answer they do not say where the topic ends either."""

    asked = 0

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        return []

    def end_offsets(self) -> dict[Partition, int]:
        self.asked += 1
        if self.asked > 1:
            raise SourceUnavailable("away")
        return super().end_offsets()


def test_brokers_that_go_away_end_it() -> None:
    reports = Reports(lambda topic: BrokersAway(log_of(topic)), stream="s", branch="main")
    with pytest.raises(SourceUnavailable, match="away"):
        reports.read_back([])


def test_a_stop_ends_it() -> None:
    stop = threading.Event()

    class StopsMeanwhile(InMemoryRecordSource):
        def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
            assert not stop.is_set()
            stop.set()
            return []

    def open_source(topic: str) -> RecordSource:
        return StopsMeanwhile(log_of(topic))

    with pytest.raises(SourceUnavailable, match="stopped while reading back"):
        Reports(open_source, stream="s", branch="main").read_back([], stop)


def test_brokers_that_cannot_be_reached_are_away_and_no_setting_is_wrong() -> None:
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}", connect_timeout_seconds=1)
    with pytest.raises(SourceUnavailable, match="no broker is reachable"):
        kafka_reports(settings, stream="s", branch="main").read_back([])
