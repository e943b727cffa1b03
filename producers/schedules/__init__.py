"""Every file here is one schedule; a new one is found without being listed anywhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from pipeline.user_error import UserError
from producers.class_schedule import ClassSchedule, schedule_with


@cache
def class_schedules() -> dict[str, type[ClassSchedule]]:
    """{name: class} of every schedule in this folder."""
    schedules: dict[str, type[ClassSchedule]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, ClassSchedule) and member.__module__ == module.__name__:
                assert member.name == module_info.name.replace("_", "-"), f"{module.__name__} holds {member.name!r}"
                schedules[member.name] = member
    return schedules


def open_schedule(name: str, **options: Any) -> ClassSchedule:
    """`split`, `blurred`, ... with its options (None: the default), or `UserError`."""
    if name not in class_schedules():
        raise UserError(f"unknown schedule {name!r}; known are {', '.join(sorted(class_schedules()))}")
    return schedule_with(class_schedules()[name], options)
