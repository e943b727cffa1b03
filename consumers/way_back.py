"""What lies between an earlier place of the log and its end: how much, since when, and how long the log keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from consumers.record_source import RecordSource
from pipeline.record import Partition

# Kafka's first release. A record that is older was dated by a broken clock, or in seconds where milliseconds belong.
_NO_RECORD_IS_OLDER_SECONDS = datetime(2011, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class WayBack:
    """As it was when it was looked at. Times and ages go by the log's clock, which retention goes by too."""

    records_to_relearn: int
    records_since: int  # that came after the place: those to be learnt again, and those not yet learnt
    records_lately: int  # of these, the ones of the later half of the time since
    age_seconds: float | None  # of the oldest record to be learnt again; None: no record, or no time to be believed
    has_odd_times: bool  # some record's time is not to be believed, so that nobody knows when records came
    retention_seconds: float | None  # None: for ever


def measure_way_back(
    source: RecordSource,
    begin: Mapping[Partition, int],
    learnt: Mapping[Partition, int],
    *,
    records_to_relearn: int,
    retention_seconds: float | None,
    now_seconds: float,
) -> WayBack:
    """From `begin` over `learnt`, where the learner stands, to the log's end. `now_seconds`: since 1970.

    `records_to_relearn` are records; what was not learnt yet can only be counted in offsets, a few of which may be
    transactions' markers. Moves the source's positions nowhere. Raises `SourceUnavailable` and `LogTruncated`.

    1. The oldest record to be learnt again: the first one of each partition, by its own time (`Record.timestamp_ms`:
       the producer's, or the broker's under `message.timestamp.type=LogAppendTime`).
    2. What came since then, and what of it in the later half of the time: a log that was written at a stroke, some
       while ago, shows by this that nothing comes any more.
    """
    # 1.
    times: list[float] = []
    has_odd_times = False
    for partition in sorted(begin):
        if begin[partition] < learnt.get(partition, 0):
            record = source.read_next(partition, begin[partition])
            if record is not None and _NO_RECORD_IS_OLDER_SECONDS <= record.timestamp_ms / 1000 <= now_seconds:
                times.append(record.timestamp_ms / 1000)
            elif record is not None:
                has_odd_times = True
    age = now_seconds - min(times) if times else None
    # 2.
    ends = source.end_offsets()
    halfway = source.offsets_since(now_seconds - age / 2) if age is not None else {}
    lately = sum(max(0, ends[p] - max(halfway.get(p, ends[p]), begin.get(p, 0))) for p in ends)
    since = records_to_relearn + sum(max(0, ends[p] - learnt.get(p, begin.get(p, 0))) for p in ends)
    return WayBack(
        records_to_relearn=records_to_relearn,
        records_since=since,
        records_lately=min(lately, since),
        age_seconds=age,
        has_odd_times=has_odd_times,
        retention_seconds=retention_seconds,
    )
