"""Hears on `<stream>.events` that a version was promoted, so that nobody waits for the next look at MLflow."""

from __future__ import annotations

import threading
from collections.abc import Callable

from consumers import topics
from consumers.events import event_data
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.promotion_events import PROMOTED
from consumers.record_source import LogTruncated, SourceUnavailable
from consumers.topics import MAIN_BRANCH, topic_partitions
from pipeline.user_error import UserError

# Events are a short cut: where they cannot be read, the look at MLflow a few seconds later does as well.
_RETRY_SECONDS = 10.0
_POLL_SECONDS = 0.5


def watch_promotions(settings: KafkaSettings, stream: str, heard: Callable[[], None], stop: threading.Event) -> None:
    """Until `stop` is set; `heard` is called at each promotion that is told from now on. Run it in a thread."""
    while not stop.is_set():
        try:
            _, partitions = topic_partitions(settings, topics.events(stream))
            if partitions:
                with KafkaRecordSource(settings, partitions) as source:
                    source.seek(source.end_offsets())
                    while not stop.is_set():
                        for record in source.poll(100, _POLL_SECONDS):
                            if event_data(record, branch=MAIN_BRANCH, kind=PROMOTED) is not None:
                                heard()
        except (UserError, SourceUnavailable, LogTruncated):
            pass  # brokers that are away, an ACL that is missing, a topic that was made anew
        stop.wait(_RETRY_SECONDS)
