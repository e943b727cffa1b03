"""Whether a learner that goes back has caught up again before the log deletes what it must learn once more: the sums.

    expected = to relearn / (pace - arrival)      seconds until it is as near to the log's end as it was
    left     = retention - age                    seconds until the oldest record to be learnt again may be deleted

It is refused where expected > left, or where arrival >= pace and the log does not keep its records for ever. This is
careful: that oldest record is read at once. But a learner that is killed on its way goes on from where it went back to,
and it is to find the log there until it has caught up.

Not covered is `retention.bytes`, under which a log deletes by size: what of its size a record takes is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

from consumers.check_report import days
from consumers.way_back import WayBack

# The way out of a refusal, beside what is to be put right first.
AGAIN = "let the job be done again (`palimpsest consolidate` or `palimpsest expand`, or the learner's next request)"
# The first updates are slow, so a process that has learnt fewer does not know its pace.
_PACE_NEEDS_RECORDS = 1_000
# Records come in bursts; what came within less time says nothing about the hours that follow.
_ARRIVAL_NEEDS_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast this process has learnt so far, without the waits for records."""

    records: int
    seconds: float

    @property
    def records_per_second(self) -> float | None:
        """As far as one can tell; None: it has learnt nothing yet."""
        return self.records / self.seconds if self.records and self.seconds > 0 else None

    @property
    def is_known(self) -> bool:
        """Whether it is measured well enough to refuse anything for it."""
        return self.records >= _PACE_NEEDS_RECORDS and self.seconds > 0


def arrival_per_second(way: WayBack) -> float | None:
    """Records that come in a second: the lower of the rates since the oldest one and in the later half of that time.

    None: they came too shortly ago, or nobody knows when.
    """
    if way.age_seconds is None or way.age_seconds < _ARRIVAL_NEEDS_SECONDS or way.has_odd_times:
        return None
    return min(way.records_since / way.age_seconds, way.records_lately / (way.age_seconds / 2))


def expected_seconds(way: WayBack, pace: Pace) -> float | None:
    """Until it is as near to the log's end as it was, with what arrives meanwhile, where that is known.

    None: never at this pace, or the pace is not known.
    """
    learns, arrive = pace.records_per_second, arrival_per_second(way) or 0.0
    return way.records_to_relearn / (learns - arrive) if learns is not None and learns > arrive else None


def why_not_caught_up(way: WayBack, pace: Pace) -> str | None:
    """One line; None: it catches up in time, or nothing says that it does not."""
    if way.retention_seconds is None or not way.records_to_relearn:
        return None
    left = None if way.age_seconds is None else way.retention_seconds - way.age_seconds
    again = f"{way.records_to_relearn:,} records would be learnt again"
    way_out = f"raise the samples' retention.ms, or make the learner faster, and {AGAIN}"
    if left is not None and left <= 0:
        return (
            f"{again}, and the oldest came {days(way.retention_seconds - left)} ago: past the log's retention of "
            f"{days(way.retention_seconds)}, so it may be deleted at any moment; {way_out}"
        )
    learns, arrive = pace.records_per_second, arrival_per_second(way)
    if not pace.is_known or learns is None:
        return None
    if arrive is not None and arrive >= learns:
        return (
            f"{again} and never be caught up with: {_rate(arrive)} records/s arrive, this learner learns "
            f"{_rate(learns)}, and the log keeps them for {days(way.retention_seconds)}; make the learner faster, or "
            f"let the log keep them for ever (retention.ms=-1), and {AGAIN}"
        )
    expected = expected_seconds(way, pace)
    assert expected is not None, "it learns faster than records arrive"
    if left is not None and expected > left:
        meanwhile = "" if arrive is None else f" while {_rate(arrive)}/s arrive"
        return (
            f"{again}, at {_rate(learns)} records/s{meanwhile}, which takes {days(expected)}, and the log may delete "
            f"the oldest in {days(left)} (its retention is {days(way.retention_seconds)}); {way_out}"
        )
    return None


def _rate(per_second: float) -> str:
    """For a person; a learner of large models may need many seconds a record."""
    return f"{per_second:,.1f}" if per_second >= 1 else f"{per_second:.2g}"
