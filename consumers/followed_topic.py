"""One topic, read from a moment on and then for ever, by somebody who only wants to know what lies there.

Unlike the learner, who must not miss a record, it bears whatever happens to a log: the topic may not exist yet, may be
deleted and made anew, grow by partitions, lose its tail; retention may cut off what was to be read next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from kafka.errors import KafkaError

from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.record_source import LogTruncated, RecordSource, RecordUnreadable, SourceUnavailable
from consumers.topics import readable_partitions
from pipeline.record import Partition, Record

OpenSource = Callable[[], RecordSource | None]  # None: the topic does not exist (yet)

# How often the ends are asked for: it is a request to the brokers.
_ENDS_SECONDS = 0.25
# Records may lie in the log later than their times say: their producer waited for its batch, or for its transaction.
_SLACK_SECONDS = 60.0


def kafka_topic(settings: KafkaSettings, name: str) -> OpenSource:
    """To be opened when it is read first, or again; raises `UserError` where it is not to be read."""

    def open_source() -> RecordSource | None:
        partitions = readable_partitions(settings, name)
        return KafkaRecordSource(settings, partitions) if partitions else None

    return open_source


class FollowedTopic:
    """Polls like a source, and says how far it has read, in time. Not thread-safe: one thread at a time.

    `poll` reads some records twice after a cut: the reader must know what it has seen.
    """

    def __init__(
        self,
        open_source: OpenSource,
        *,
        since_seconds: float,
        look_seconds: float,
        most_back: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`since_seconds`: Unix time from which on records are read, by the log's own times.

        `most_back`: where more offsets than this lie behind that time, the newest of them; None: all. Each partition
        goes back by its share, so that in all of them they are about as old.
        `look_seconds`: how often a missing topic, and new partitions, are looked for. `clock`: Unix time in seconds.
        """
        self._open_source = open_source
        self._look_seconds = look_seconds
        self._most_back = most_back
        self._clock = clock
        self._start_seconds = since_seconds  # of what is opened next
        self._source: RecordSource | None = None
        self._looked_at: float | None = None  # monotonic: for the topic, or for its partitions
        self._ends: tuple[float, Mapping[Partition, int]] | None = None  # asked for at this Unix time, not yet reached
        self._ends_asked_at = -math.inf  # monotonic
        self._has_come = False  # a record, by the newest poll
        self.polled_at = -math.inf  # monotonic
        self.is_at_end = False  # all was read that lay there when somebody looked last
        self.cuts = 0  # how often the log did not hold what was to be read next
        self.newest_seconds = since_seconds  # the newest record's time, or when there was no newer one
        self.complete_to_seconds = since_seconds  # all that lay there at this Unix time was read

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        """Up to `max_records`; empty where none came in time, or there is no topic yet.

        1. Open the topic, or look for new partitions, when it is time; ask for the ends.
        2. Poll.
        3. Where all was read that lay there when the ends were asked for, it is complete up to then.

        Raises `SourceUnavailable`, and `UserError` where it is not to be read; the same call may be made again. A log
        that was cut is read on from what is left of it.
        """
        self.polled_at = time.monotonic()
        try:
            # 1.
            source = self._opened()
            if source is None:
                return []
            self._ask_for_ends(source)
            # 2.
            records = source.poll(max_records, timeout_seconds)
            self._has_come = bool(records)
            if records:
                self.newest_seconds = max(self.newest_seconds, *map(self.seconds, records))
            # 3.
            with suppress(SourceUnavailable, KafkaError):  # what was read must not be lost; the next call says it
                self._look_at_ends(source)
        except RecordUnreadable:
            self._cut(since_seconds=self._clock())  # whatever lies there: reading it again would end the same way
            return []
        except LogTruncated:
            self._cut(since_seconds=self.complete_to_seconds - _SLACK_SECONDS)
            return []
        except KafkaError as error:
            raise SourceUnavailable(f"reading failed ({error})") from error
        return records

    def seconds(self, record: Record) -> float:
        """The record's time in the log, which is never in the future: a clock that is fast must not outdate the rest.

        One that the log has no time of (-1) counts as of now.
        """
        now = self._clock()
        return now if record.timestamp_ms < 0 else min(now, record.timestamp_ms / 1000)

    @property
    def is_missing(self) -> bool:
        """The topic did not exist when it was looked for, and it is not time to look again."""
        return self._source is None and not self._is_time_to_look()

    def expect_more(self) -> None:
        """It is not at its end again until all was read that lies there now, in new partitions too."""
        self.is_at_end = False
        self._looked_at = None
        self._ends = None
        self._ends_asked_at = -math.inf

    def close(self) -> None:
        """Let go of the brokers; a later poll begins anew."""
        if self._source is not None:
            self._source.close()
            self._source = None
        self._ends = None

    def _is_time_to_look(self) -> bool:
        return self._looked_at is None or time.monotonic() - self._looked_at >= self._look_seconds

    def _opened(self) -> RecordSource | None:
        is_time = self._is_time_to_look()
        if self._source is not None:
            if is_time:
                self._looked_at = time.monotonic()
                self._source.refresh_partitions()
            return self._source
        if not is_time:
            return None
        looked_at_seconds = self._clock()
        source = self._open_source()
        self._looked_at = time.monotonic()
        if source is None:
            self.is_at_end = True
            self._complete(looked_at_seconds)
            return None
        try:
            source.seek(self._begin(source))
        except BaseException:
            source.close()
            raise
        self._source = source
        return source

    def _begin(self, source: RecordSource) -> Mapping[Partition, int]:
        since = source.offsets_since(self._start_seconds)
        if self._most_back is None:
            return since
        ends = source.end_offsets()
        back = {partition: max(0, ends[partition] - offset) for partition, offset in since.items()}
        share = min(1.0, self._most_back / max(1, sum(back.values())))
        return {
            partition: offset + back[partition] - math.ceil(back[partition] * share)
            for partition, offset in since.items()
        }

    def _ask_for_ends(self, source: RecordSource) -> None:
        """Also where nothing comes: brokers that are away poll as an empty log does, and this raises where they are."""
        is_time = time.monotonic() - self._ends_asked_at >= _ENDS_SECONDS
        if is_time and (self._ends is None or not self._has_come):
            self._ends_asked_at = time.monotonic()
            asked_at_seconds = self._clock()
            ends = source.end_offsets()
            if self._ends is None:  # else those asked for before are to be reached first
                self._ends = asked_at_seconds, ends

    def _look_at_ends(self, source: RecordSource) -> None:
        if self._ends is None:
            return
        asked_at_seconds, ends = self._ends
        positions = source.positions()
        self.is_at_end = all(positions[partition] >= end for partition, end in ends.items())
        if self.is_at_end:
            self._ends = None
            self._complete(asked_at_seconds)

    def _complete(self, to_seconds: float) -> None:
        self.complete_to_seconds = max(self.complete_to_seconds, to_seconds)
        self.newest_seconds = max(self.newest_seconds, to_seconds)

    def _cut(self, *, since_seconds: float) -> None:
        """Let go of what is open. The next poll opens it anew, to read from `since_seconds`, or from what is left."""
        self.cuts += 1
        self._start_seconds = since_seconds
        self.is_at_end = False
        self._looked_at = None
        self.close()
