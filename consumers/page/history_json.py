"""`GET /history`: one JSON object with all that the page draws but what changes from second to second.

    {"stream", "branch", "palimpsest", "records",           records: consumed when it was taken
     "evaluated": {"at", "accuracy", "forgetting", "transfer", "worst", "classes"} | null      the newest evaluation
     "course": {"at": [...], "accuracy": [...], "forgetting": [...], "made", "kept"},      a column is an evaluation
     "classes": [{"name", "accuracy", "error", "best", "forgetting", "n", "at", "counts", "replay", "course"}, ...],
     "baseline": {"title", "branch", "evaluated", "course", "classes": {name: {...}}, "problem"} | null,
     "events": {"lines": [{"id", "kind", "time", "at", "near", "text"}], "left_out", "problem"},
     "versions": [{"version", "time", "at", "trigger", "accuracy", "forgetting", "role"}], ...}

Figures are ratios from 0 to 1, with 4 decimals; null: not known. `course` of a class has a column's accuracy in units
of 0.0001. `at` counts records consumed; `near` is about where an event belongs that does not say it itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from consumers.page.baseline import BaselineLook
from consumers.page.event_log import EventLines
from consumers.page.standing import Standing
from consumers.page.told_event import ToldEvent
from pipeline.evaluation.accuracy_course import AccuracyCourse
from pipeline.evaluation.forgetting import ClassEvaluation, EvaluationReport

_MOST_COLUMNS = 400
# Columns x classes: about a megabyte of JSON, a fifth of it when packed. Thousands of classes are drawn more coarsely.
_MOST_CELLS = 200_000
_FEWEST_COLUMNS = 24
_UNIT = 10_000


def history_json(
    *,
    stream: str,
    branch: str,
    standing: Standing | None,
    events: EventLines,
    baseline: BaselineLook | None,
    baseline_title: str,
    more: Mapping[str, Any] | None = None,
) -> bytes:
    """UTF-8. `standing` None: the state is not loaded yet. `more`: further entries of the object."""
    return b"".join(_pieces(stream, branch, standing, events, baseline, baseline_title, more or {}))


def _pieces(
    stream: str,
    branch: str,
    standing: Standing | None,
    events: EventLines,
    baseline: BaselineLook | None,
    baseline_title: str,
    more: Mapping[str, Any],
) -> Iterator[bytes]:
    """Each is encoded in little time: `json` does not let the thread that learns run before it is through."""
    course = None if standing is None else _thinned(standing.course)
    head = {
        "stream": stream,
        "branch": branch,
        "palimpsest": version("palimpsest"),
        "records": None if standing is None else standing.records_consumed,
        "evaluated": None if standing is None else _evaluated(standing.report),
        "course": None if standing is None or course is None else _course(course, kept=len(standing.course.rows_P)),
        **more,
    }
    yield _encoded(head)[:-1]
    yield b',"classes":['
    if standing is not None and course is not None:
        yield from _joined(_encoded(entry) for entry in _classes(standing, course))
    yield b'],"baseline":'
    yield from _baseline(baseline, baseline_title)
    about = {"left_out": events.has_left_out, "problem": events.problem}
    yield b',"events":' + _encoded(about)[:-1] + b',"lines":['
    near = _Near(events.events)
    yield from _joined(_encoded(_event(event, near)) for event in events.events)
    yield b']},"versions":['
    yield from _joined(_encoded(entry) for entry in _versions(events))
    yield b"]}"


def _encoded(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # half a surrogate pair, which an event can bring and UTF-8 cannot hold, becomes the escape that JSON has for it
    return text.encode(errors="backslashreplace")


def _joined(entries: Iterable[bytes]) -> Iterator[bytes]:
    for place, entry in enumerate(entries):
        yield b"," + entry if place else entry


# -- the learner -------------------------------------------------------------------------------------------------------


def _thinned(course: AccuracyCourse) -> AccuracyCourse:
    most = min(_MOST_COLUMNS, _MOST_CELLS // max(1, len(course.labels_C)))
    return course.thinned(max(_FEWEST_COLUMNS, most))


def _evaluated(report: EvaluationReport | None) -> dict[str, Any] | None:
    if report is None:
        return None
    return {
        "at": report.at_records,
        "accuracy": _ratio(report.average_accuracy),
        "forgetting": _ratio(report.average_forgetting),
        "transfer": _ratio(report.backward_transfer),
        "worst": report.worst_class,
        "classes": report.known_classes,
    }


def _course(course: AccuracyCourse, *, kept: int) -> dict[str, Any]:
    return {
        "at": [row.at_records for row in course.rows_P],
        "accuracy": [_ratio(row.average_accuracy) for row in course.rows_P],
        "forgetting": [_ratio(row.average_forgetting) for row in course.rows_P],
        "made": course.evaluations,
        "kept": kept,
    }


def _classes(standing: Standing, course: AccuracyCourse) -> Iterator[dict[str, Any]]:
    """In order of their first evaluation; then those that never had one."""
    now = {} if standing.report is None else {entry.name: entry for entry in standing.report.classes}
    units_CP = np.where(np.isnan(course.accuracies_CP), -1, np.rint(course.accuracies_CP * _UNIT)).astype(np.int64)
    rows = dict(zip(course.labels_C, units_CP, strict=True))
    for name in dict.fromkeys([*rows, *now, *standing.replay]):
        row = [None if unit < 0 else unit for unit in rows[name].tolist()] if name in rows else []
        yield {"name": name, **_class_now(now.get(name)), "replay": standing.replay.get(name, 0), "course": row}


def _class_now(entry: ClassEvaluation | None) -> dict[str, Any]:
    if entry is None:
        return {"accuracy": None, "error": None, "best": None, "forgetting": None, "n": 0, "at": None, "counts": False}
    return {
        "accuracy": _ratio(entry.accuracy),
        "error": _ratio(entry.standard_error),
        "best": _ratio(entry.best),
        "forgetting": _ratio(entry.forgetting),
        "n": entry.n,
        "at": entry.at_records,
        "counts": entry.in_averages,
    }


def _baseline(look: BaselineLook | None, title: str) -> Iterator[bytes]:
    if look is None:
        yield b"null"
        return
    standing = None if look.found is None else look.found.standing
    about = {
        "title": title,
        "branch": None if look.found is None else look.found.branch,
        "evaluated": None if standing is None else _evaluated(standing.report),
        "course": None if standing is None else _course(_thinned(standing.course), kept=len(standing.course.rows_P)),
        "problem": look.problem,
    }
    yield _encoded(about)[:-1] + b',"classes":{'
    if standing is not None and standing.report is not None:
        yield from _joined(
            _encoded(entry.name)
            + b":"
            + _encoded({"accuracy": _ratio(entry.accuracy), "forgetting": _ratio(entry.forgetting)})
            for entry in standing.report.classes
        )
    yield b"}}"


# -- events ------------------------------------------------------------------------------------------------------------


class _Near:
    """About how many records were consumed at a moment: between the events that say it, as if they came evenly."""

    def __init__(self, events: Sequence[ToldEvent]) -> None:
        known = [(event.time_seconds, event.at_records) for event in events if event.at_records is not None]
        self._times = [seconds for seconds, _ in known]
        self._records = [records for _, records in known]

    def __call__(self, seconds: float) -> int | None:
        if not self._times:
            return None
        return round(float(np.interp(seconds, self._times, self._records)))


def _event(event: ToldEvent, near: _Near) -> dict[str, Any]:
    return {
        "id": event.id,
        "kind": event.kind,
        "time": round(event.time_seconds, 3),
        "at": event.at_records,
        "near": near(event.time_seconds) if event.at_records is None else event.at_records,
        "text": event.text,
    }


def _versions(events: EventLines) -> Iterator[dict[str, Any]]:
    newest = events.versions[-1].told.version if events.versions else None
    # of several roles the last one here is shown
    roles = {newest: "challenger", events.previous: "previous", events.champion: "champion"}
    for line in events.versions:
        yield {
            "version": line.told.version,
            "time": round(line.time_seconds, 3),
            "at": line.at_records,
            "trigger": line.told.trigger,
            "accuracy": _ratio(line.told.average_accuracy),
            "forgetting": _ratio(line.told.average_forgetting),
            "role": roles.get(line.told.version),
        }


def _ratio(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)
