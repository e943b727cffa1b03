"""Reads `<stream>.events` for the page, in a thread of its own, from when somebody looks until nobody does any more.

Its consumer belongs to no group and commits nothing. A learner whose page nobody opens has no such thread, and no
connection more than before.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from consumers import topics
from consumers.followed_topic import FollowedTopic, OpenSource, kafka_topic
from consumers.kafka_connection import hearing
from consumers.kafka_settings import KafkaSettings
from consumers.page.event_log import EventLog
from consumers.page.told_event import told_event
from consumers.record_source import SourceUnavailable
from pipeline.user_error import UserError

# Lulls of a trickling stream are told too: to find the few hundred events that are shown, so many are looked through.
MOST_BACK = 50_000
_CHUNK_RECORDS = 500
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 30.0  # for a topic that is missing, and for new partitions
_RETRY_SECONDS = 10.0  # brokers that are away
# After so long without a look, the brokers are let go of. The page asks every few seconds, in a tab that nobody sees
# every minute or two, as the browser lets it; what is let go of in between is read again from its beginning each time.
_REST_SECONDS = 300.0
_END_SECONDS = 10.0  # a question to brokers that are away takes 5 s


def events_topic(settings: KafkaSettings, stream: str) -> OpenSource:
    """Where they are read."""
    return kafka_topic(settings, topics.events(stream))


class EventFollower:
    """`look` from any thread; nobody waits for brokers but its own thread."""

    def __init__(self, open_source: OpenSource, log: EventLog) -> None:
        self._open_source = open_source
        self._log = log
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._looked_at = 0.0  # monotonic
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Somebody looks: see that the events are read."""
        with self._lock:
            self._looked_at = time.monotonic()
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="page-events", daemon=True)
                self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_END_SECONDS)

    def _run(self) -> None:
        """Until nobody looks any more; then the next look begins anew, and what is known changes nothing."""
        topic = FollowedTopic(self._open_source, since_seconds=0.0, look_seconds=_LOOK_SECONDS, most_back=MOST_BACK)
        try:
            with hearing(self._stop):
                while not self._stop.is_set():
                    self._read(topic)  # who looked once gets one reading, however late this thread comes to it
                    if self._rests():
                        return
        except BaseException:  # a bug: the page must not look as if nothing happened any more
            self._log.set_problem("reading them ended by a bug; see what the learner says, and start it again")
            raise
        finally:
            topic.close()

    def _read(self, topic: FollowedTopic) -> None:
        try:
            records = topic.poll(_CHUNK_RECORDS, _POLL_SECONDS)
        except (SourceUnavailable, UserError) as error:
            if not self._stop.is_set():
                self._log.set_problem(str(error))
            self._stop.wait(_RETRY_SECONDS)
            return
        told = [event for record in records if (event := told_event(record)) is not None]
        if told:
            self._log.add(told)
        if records or topic.is_at_end:
            self._log.set_problem(None)
        if topic.is_missing:
            self._stop.wait(_POLL_SECONDS)

    def _rests(self) -> bool:
        with self._lock:
            if time.monotonic() - self._looked_at < _REST_SECONDS:
                return False
            self._thread = None
            return True
