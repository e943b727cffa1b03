"""Reads what champion and challenger answered and the true labels that came later, and keeps the scores of both.

It belongs to no group and commits nothing: at its start it goes back by the horizon, in which every answer that can
still be scored lies, so that there is no state to lose. Whoever waits for its end names the most records to go back by.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from consumers.answers import parse_answer
from consumers.followed_topic import FollowedTopic, OpenSource
from consumers.kafka_connection import hearing
from consumers.record_source import ReadingStopped, SourceUnavailable
from consumers.shadow_settings import ShadowSettings
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.evaluation.delayed_labels import DelayedLabels
from pipeline.evaluation.shadow_scores import Role
from pipeline.record import Record
from pipeline.user_error import UserError

# Read of one topic before it is the turn of another: few enough that none runs far ahead.
_CHUNK_RECORDS = 500
_POLL_SECONDS = 0.1
# How often the scores are shown: making the page anew costs a pass over the windows.
_SHOW_SECONDS = 1.0


class ShadowReader:
    """Three topics, merged roughly in the order of their records' times. Not thread-safe: one thread at a time."""

    def __init__(
        self,
        settings: ShadowSettings,
        decoder: RecordDecoder,
        *,
        champion: OpenSource,
        challenger: OpenSource,
        samples: OpenSource,
        most_back: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`champion`, `challenger`: where each one's answers are; `samples`: the labelled records, read by `decoder`.

        `most_back`: records of each topic that are gone back by, at most; None: by the whole horizon. `clock`: Unix
        time in seconds.
        """
        self.labels = settings.new_labels()
        self._look_seconds = settings.look_seconds
        self._decoder = decoder
        since_seconds = clock() - settings.horizon_seconds

        def followed(open_source: OpenSource) -> FollowedTopic:
            return FollowedTopic(
                open_source,
                since_seconds=since_seconds,
                most_back=most_back,
                look_seconds=settings.look_seconds,
                clock=clock,
            )

        self._answers: dict[Role, FollowedTopic] = {"champion": followed(champion), "challenger": followed(challenger)}
        self._samples = followed(samples)
        self._aside: dict[FollowedTopic, float] = {}  # until this monotonic time: it could not be read

    @property
    def cuts(self) -> int:
        """How often a log did not hold what was to be read next: answers or labels were lost."""
        return sum(topic.cuts for topic in self._topics)

    def read_to_end(self, stop: threading.Event | None = None) -> DelayedLabels:
        """All that lies there at the moment of the call, or has come by the time that was read.

        Raises `ReadingStopped` once `stop` is set, `SourceUnavailable`, and `UserError` where a topic is not to be
        read. A topic that does not exist is an empty one.
        """
        for topic in self._topics:
            topic.expect_more()
        with hearing(stop):
            while True:
                behind = [topic for topic in self._topics if not topic.is_at_end]
                if not behind:
                    return self.labels
                if stop is not None and stop.is_set():
                    raise ReadingStopped("stopped while reading the shadow's answers")
                self._read(_furthest_behind(behind))

    def run(
        self,
        stop: threading.Event,
        *,
        shown: Callable[[DelayedLabels, int], None],
        warned: Callable[[str], None],
    ) -> None:
        """Read on until `stop` is set, whatever happens to brokers and topics; then let go of them.

        `shown(labels, cuts)` is called from this thread about once a second. `warned` hears in one line why a topic
        cannot be read, once for as long as the reason is the same; the others are read on meanwhile.
        """
        problems: dict[FollowedTopic, str] = {}
        shown_at: float | None = None
        try:
            with hearing(stop):
                while not stop.is_set():
                    now = time.monotonic()
                    if shown_at is None or now - shown_at >= _SHOW_SECONDS:
                        shown_at = now
                        shown(self.labels, self.cuts)
                    ready = [each for each in self._topics if self._aside.get(each, now) <= now and not each.is_missing]
                    if not ready:
                        stop.wait(_POLL_SECONDS)
                        continue
                    topic = _furthest_behind(ready)
                    try:
                        self._read(topic)
                        problems.pop(topic, None)
                    except (SourceUnavailable, UserError) as error:
                        self._aside[topic] = time.monotonic() + self._look_seconds
                        if not stop.is_set() and problems.get(topic) != str(error):
                            problems[topic] = str(error)
                            warned(str(error))
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the brokers; may be called twice."""
        for topic in self._topics:
            topic.close()

    @property
    def _topics(self) -> Sequence[FollowedTopic]:
        return (*self._answers.values(), self._samples)

    def _read(self, topic: FollowedTopic) -> None:
        """One chunk of it. What has waited for the horizon by the time up to which all three are read goes."""
        records = topic.poll(_CHUNK_RECORDS, _POLL_SECONDS)
        for role, answers in self._answers.items():
            if topic is answers:
                self._tell_answers(role, records)
        if topic is self._samples:
            self._tell_labels(records)
        self.labels.advance(min(each.complete_to_seconds for each in self._topics))

    def _tell_answers(self, role: Role, records: Sequence[Record]) -> None:
        for record in records:
            answer = parse_answer(record)
            if answer is None or answer.role != role:
                continue  # anybody may write there
            # The log's own time, which the labels have too: clocks of theirs would have to agree.
            seconds = self._answers[role].seconds(record)
            self.labels.answered(answer.request_id, role, answer.version, answer.label, seconds)

    def _tell_labels(self, records: Sequence[Record]) -> None:
        for record in records:
            found = self._decoder.decode_label(record)
            if found is not None:
                self.labels.labelled(*found, self._samples.seconds(record))


def _furthest_behind(topics: Sequence[FollowedTopic]) -> FollowedTopic:
    """The one whose newest record is oldest; where all are read to their ends, the one not polled for longest."""
    behind = [topic for topic in topics if not topic.is_at_end]
    if behind:
        return min(behind, key=lambda topic: (topic.newest_seconds, topic.polled_at))
    return min(topics, key=lambda topic: topic.polled_at)
