"""The request log without Kafka: a topic of requests in memory, the group's offsets, and the answers."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from consumers.memory_record_source import InMemoryLog
from consumers.request_log import PredictorFenced, RequestLog
from model_store.snapshot import OutboxMessage
from pipeline.record import Partition, Record


class InMemoryRequests:
    """What all members of a group share."""

    def __init__(self, log: InMemoryLog) -> None:
        self.log = log
        self.lock = threading.Lock()
        self.generation = 0
        self.members: dict[str, int] = {}  # instance -> the generation in which its newest member joined
        self.committed: dict[Partition, int] = {}
        self.answers: list[OutboxMessage] = []

    def owner(self, partition: Partition) -> str:
        """Partitions go round the members."""
        names = sorted(self.members)
        return names[partition.number % len(names)]


class InMemoryRequestLog(RequestLog):
    """One member. A member that comes or goes begins another generation, in which positions are the committed ones."""

    def __init__(self, requests: InMemoryRequests, instance: str) -> None:
        self._requests, self._instance = requests, instance
        with requests.lock:
            requests.generation += 1
            self._joined = requests.members[instance] = requests.generation
        self._generation = -1
        self._positions: dict[Partition, int] = {}
        self._polled: dict[Partition, int] = {}
        self._is_open = True

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        requests = self._requests
        self._polled = {}
        found: list[Record] = []
        with requests.log.changed:
            self._find(found, max_records)
            if not found:
                requests.log.changed.wait(timeout_seconds)
                self._find(found, max_records)
            for record in found:
                self._positions[record.log_partition] = self._polled[record.log_partition] = record.offset + 1
            if len(found) < max_records:  # past what holds no record, too
                self._positions = {partition: requests.log.end(partition) for partition in self._positions}
        return found

    def answer(self, answers: Sequence[OutboxMessage]) -> bool:
        requests = self._requests
        with requests.lock:
            self._check_alone()
            if not self._polled:
                return True
            if self._generation != requests.generation:
                return False
            requests.committed |= self._polled
            requests.answers += answers
            return True

    def lag_records(self) -> dict[Partition, int]:
        return {
            partition: self._requests.log.end(partition) - position for partition, position in self._positions.items()
        }

    def is_at_end(self) -> bool:
        return self._generation == self._requests.generation and not any(self.lag_records().values())

    def close(self) -> None:
        with self._requests.lock:
            if self._is_open and self._requests.members.get(self._instance) == self._joined:
                del self._requests.members[self._instance]
                self._requests.generation += 1
        self._is_open = False

    def _find(self, found: list[Record], max_records: int) -> None:
        requests = self._requests
        with requests.lock:
            self._check_alone()
            if self._generation != requests.generation:
                self._generation = requests.generation
                ours = [
                    partition for partition in requests.log.partitions if requests.owner(partition) == self._instance
                ]
                self._positions = {partition: requests.committed.get(partition, 0) for partition in ours}
        for partition, position in self._positions.items():
            for offset in range(position, requests.log.end(partition)):
                record = requests.log.at(partition, offset)
                if record is not None and len(found) < max_records:
                    found.append(record)

    def _check_alone(self) -> None:
        if self._requests.members.get(self._instance) != self._joined:
            raise PredictorFenced(f"another predictor answers as instance {self._instance!r}; this one ends")
