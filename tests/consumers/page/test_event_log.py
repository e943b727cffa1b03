"""The newest events, each once, whatever the order they are read in."""

from __future__ import annotations

import random

from consumers.page.event_log import MOST_EVENTS, EventLog
from consumers.page.told_event import ToldEvent, event_of


def event(number: int) -> ToldEvent:
    return event_of(str(number), "drift", {"detector": "d", "records_consumed": number}, time_seconds=float(number))


def test_a_repeat_changes_nothing() -> None:
    log = EventLog()
    log.add([event(1), event(2)])
    before = log.lines
    log.add([event(2)])
    assert log.lines is before
    assert [each.id for each in before.events] == ["1", "2"]


def test_it_keeps_the_newest_in_whatever_order_they_come() -> None:
    numbers = list(range(3 * MOST_EVENTS))
    random.Random(0).shuffle(numbers)
    log = EventLog()
    for number in numbers:
        log.add([event(number)])
    assert [int(each.id) for each in log.lines.events] == list(range(2 * MOST_EVENTS, 3 * MOST_EVENTS))
    assert log.lines.has_left_out


def test_read_again_from_the_beginning_old_ones_push_out_no_newer_one() -> None:
    """As after the brokers were let go of, or a log that was cut."""
    log = EventLog()
    events = [event(number) for number in range(MOST_EVENTS + 50)]
    log.add(events)
    before = log.lines
    log.add(events)
    assert log.lines is before


def test_roles_follow_the_newest_promotion_in_time() -> None:
    log = EventLog()
    registered = [
        event_of(f"v{number}", "version_registered", {"version": number}, time_seconds=float(number))
        for number in (2, 1, 3)
    ]
    there = event_of("p1", "promoted", {"from": None, "to": 1}, time_seconds=10.0)
    back = event_of("p2", "promoted", {"from": 1, "to": 3}, time_seconds=20.0)
    log.add([*registered, back, there])
    assert [line.told.version for line in log.lines.versions] == [1, 2, 3]
    assert (log.lines.champion, log.lines.previous) == (3, 1)


def test_a_problem_is_a_change_and_so_is_its_end() -> None:
    log = EventLog()
    numbers = [log.lines.number]
    for problem in ("away", "away", None, None):
        log.set_problem(problem)
        numbers.append(log.lines.number)
    assert numbers == [0, 1, 1, 2, 2]
