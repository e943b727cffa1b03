"""The newest events, each once, and the versions that they tell of: written by one thread, read by others."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from consumers.page.told_event import ToldEvent, ToldVersion

MOST_EVENTS = 500
_MOST_VERSIONS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLine:
    """A version, as the events tell of it."""

    told: ToldVersion
    time_seconds: float
    at_records: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLines:
    """All that is kept at one moment. `number` grows with every change."""

    number: int = 0
    events: tuple[ToldEvent, ...] = ()  # oldest first, by their times
    has_left_out: bool = False  # older ones
    versions: tuple[VersionLine, ...] = ()  # ascending
    champion: int | None = None
    previous: int | None = None  # the champion before it
    problem: str | None = None  # why there may be more than these


class EventLog:
    """Bounded: of more events than `MOST_EVENTS` those with the oldest times go, in whatever order they were read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._events: dict[str, ToldEvent] = {}
        self._versions: dict[int, VersionLine] = {}
        self._promotion: tuple[float, int | None, int] | None = None  # the newest one: when, from, to
        self._has_left_out = False
        self._problem: str | None = None
        self._lines = EventLines()

    def add(self, events: Iterable[ToldEvent]) -> None:
        """Those that are known already change nothing."""
        with self._lock:
            new = [event for event in events if self._take_in(event)]
            if new:
                self._changed()

    def set_problem(self, problem: str | None) -> None:
        """Why nothing more can be read at present; None: it can."""
        with self._lock:
            if problem != self._problem:
                self._problem = problem
                self._changed()

    @property
    def lines(self) -> EventLines:
        """As they are now. Waits for nobody for long."""
        with self._lock:
            return self._lines

    def _take_in(self, event: ToldEvent) -> bool:
        if event.id in self._events:
            return False
        self._events[event.id] = event
        if event.version is not None:
            self._versions[event.version.version] = VersionLine(
                told=event.version, time_seconds=event.time_seconds, at_records=event.at_records
            )
            if len(self._versions) > _MOST_VERSIONS:
                del self._versions[min(self._versions)]
        if event.promoted is not None and (self._promotion is None or event.time_seconds >= self._promotion[0]):
            self._promotion = event.time_seconds, *event.promoted
        if len(self._events) > MOST_EVENTS:
            self._has_left_out = True
            oldest = min(self._events.values(), key=lambda each: each.time_seconds)
            del self._events[oldest.id]
            return oldest is not event
        return True

    def _changed(self) -> None:
        self._number += 1
        self._lines = EventLines(
            number=self._number,
            events=tuple(sorted(self._events.values(), key=lambda event: event.time_seconds)),
            has_left_out=self._has_left_out,
            versions=tuple(self._versions[version] for version in sorted(self._versions)),
            champion=None if self._promotion is None else self._promotion[2],
            previous=None if self._promotion is None else self._promotion[1],
            problem=self._problem,
        )
