"""Every file here is one schedule; a new one is found without being listed anywhere."""

from __future__ import annotations

from functools import cache
from typing import Any

from pipeline.discovery import subclasses_in
from pipeline.user_error import UserError
from producers.class_schedule import ClassSchedule, schedule_with


@cache
def class_schedules() -> dict[str, type[ClassSchedule]]:
    """{name: class} of every schedule in this folder."""
    schedules: dict[str, type[ClassSchedule]] = {}
    for file, schedule in subclasses_in(__name__, ClassSchedule):  # type: ignore[type-abstract]
        assert schedule.name == file.replace("_", "-"), f"{__name__}.{file} holds {schedule.name!r}"
        schedules[schedule.name] = schedule
    return schedules


def open_schedule(name: str, **options: Any) -> ClassSchedule:
    """`split`, `blurred`, ... with its options (None: the default), or `UserError`."""
    if name not in class_schedules():
        raise UserError(f"unknown schedule {name!r}; known are {', '.join(sorted(class_schedules()))}")
    return schedule_with(class_schedules()[name], options)
