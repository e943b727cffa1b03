"""What a stream's events tell of its restructurings, read from the topic as anybody may."""

from __future__ import annotations

from typing import Any

from consumers import topics
from consumers.events import event_data
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.record_source import read_records
from consumers.topics import MAIN_BRANCH
from pipeline.record import Partition

_OUTCOMES = {"adopted": "adopted", "offer_refused": "refused", "restructuring_refused": "refused"}
_FACTS = (
    "job",
    "kind",
    "reason",
    "new_classes",
    "average_accuracy_before",
    "average_accuracy_after",
    "sub_modules_before",
    "sub_modules_after",
    "parameters_before",
    "parameters_after",
    "unlabelled_rows",
    "records_to_relearn",
    "seconds",
    "why",
)


def told_restructurings(kafka: KafkaSettings, stream: str) -> list[dict[str, Any]]:
    """One entry for each that ended, in the order of the events; what an event does not say is None."""
    with KafkaRecordSource(kafka, [Partition(topics.events(stream), 0)]) as source:
        records = list(read_records(source, source.beginning_offsets(), source.end_offsets()))
    told: list[dict[str, Any]] = []
    for record in records:
        for kind, outcome in _OUTCOMES.items():
            data = event_data(record, kind=kind, branch=MAIN_BRANCH)
            if data is not None:
                told.append({"outcome": outcome, **{name: data.get(name) for name in _FACTS}})
    return told
