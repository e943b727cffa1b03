"""What a learner's status says to a person: names and values, the same at the bottom of `learn` and in `status`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from consumers.check_report import days
from consumers.status_answer import StatusAnswer
from deploy.printable import printable

_STATE_STYLES = {"starting": "yellow", "learning": "green", "idle": "cyan", "relearning": "yellow", "away": "red"}
UNKNOWN = "-"
# A label may have 256 bytes; at the bottom of a terminal it must leave room for the rest.
_MOST_OF_A_NAME = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One of them. Nothing in it does anything to a terminal."""

    name: str
    value: str
    style: str = ""  # of the value, as rich names them; never all that says something
    width: int = 0  # columns that the value usually takes, so that what follows it does not move


def live_figures(answer: StatusAnswer, *, is_stopping: bool = False) -> list[Figure]:
    """The few that somebody watches, the most important first."""
    has_versions = answer.registered_version is not None or answer.registrations_waiting
    return [
        _state(answer, is_stopping=is_stopping),
        Figure(name="records", value=_count(answer.records_consumed), width=9),
        Figure(name="rate", value=_rate(answer.records_per_second), width=7),
        Figure(name="lag", value=_count(answer.lag_records), width=7),
        Figure(name="accuracy", value=_share(answer.average_accuracy), width=6),
        Figure(name="forgetting", value=_share(answer.average_forgetting), width=6),
        Figure(name="worst", value=_worst(answer), width=10),
        Figure(name="classes", value=_count(answer.classes), width=4),
        Figure(name="snapshot", value=_next_snapshot(answer), width=7),
        *([Figure(name="version", value=_version(answer))] if has_versions else []),
    ]


def all_figures(answer: StatusAnswer) -> list[Figure]:
    """Everything that was answered, for who asks once."""
    network = answer.network
    grown = "" if network is None or network.sub_modules == 1 else f", {network.sub_modules} sub-modules"
    return [
        Figure(name="stream", value=printable(answer.stream)),
        Figure(name="branch", value=printable(answer.branch)),
        _state(answer),
        Figure(name="since", value=f"{_moment(answer.started_at)} ({days(answer.time - answer.started_at)})"),
        Figure(name="records", value=_count(answer.records_consumed)),
        Figure(name="rate", value=_rate(answer.records_per_second)),
        Figure(name="lag", value=_lag(answer)),
        Figure(name="classes", value=_count(answer.classes)),
        Figure(name="accuracy", value=_accuracy(answer)),
        Figure(name="before learning", value=_share(answer.prequential_accuracy)),
        Figure(name="forgetting", value=_share(answer.average_forgetting)),
        Figure(name="backward transfer", value=_share(answer.backward_transfer)),
        Figure(name="worst class", value=_worst_in_full(answer)),
        Figure(name="newest snapshot", value=_newest_snapshot(answer)),
        Figure(name="next snapshot", value=_next_snapshot(answer)),
        Figure(name="version", value=_version_in_full(answer)),
        Figure(name="dead letters", value=_count(answer.dead_letters)),
        Figure(name="network", value=UNKNOWN if network is None else f"{network.parameters:,} parameters{grown}"),
        Figure(name="device", value=printable(answer.device)),
        Figure(name="palimpsest", value=printable(answer.palimpsest)),
    ]


def _state(answer: StatusAnswer, *, is_stopping: bool = False) -> Figure:
    if is_stopping:
        return Figure(name="state", value="stopping", style="yellow", width=8)
    value = "brokers away" if answer.state == "away" else printable(answer.state)
    if answer.state == "relearning":
        value = f"re-learning {answer.relearning_records:,} records"
        if answer.relearning_seconds is not None:
            value += f", about {days(answer.relearning_seconds)} left"
    return Figure(name="state", value=value, style=_STATE_STYLES.get(answer.state, ""), width=8)


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _rate(per_second: float | None) -> str:
    """A learner of large models may need seconds a record."""
    if per_second is None:
        return UNKNOWN
    return f"{per_second:,.0f}/s" if per_second >= 10 or per_second == 0 else f"{per_second:.2g}/s"


def _share(ratio: float | None) -> str:
    return UNKNOWN if ratio is None else f"{ratio:.1%}"


def _lag(answer: StatusAnswer) -> str:
    behind = "" if answer.event_lag_seconds is None else f", the newest record is {days(answer.event_lag_seconds)} old"
    return UNKNOWN if answer.lag_records is None else f"{answer.lag_records:,} records{behind}"


def _accuracy(answer: StatusAnswer) -> str:
    if answer.average_accuracy is None or answer.evaluated_at_records is None:
        return UNKNOWN
    return f"{_share(answer.average_accuracy)}, after {answer.evaluated_at_records:,} records"


def _worst(answer: StatusAnswer) -> str:
    worst = answer.worst_class
    if worst is None:
        return UNKNOWN
    name = _class_name(worst.name)
    return f"{worst.accuracy:.1%} {name if len(name) <= _MOST_OF_A_NAME else f'{name[: _MOST_OF_A_NAME - 3]}...'}"


def _class_name(label: str) -> str:
    """One of spaces alone would not be seen."""
    name = printable(label)
    return name if name.strip() else f'"{name}"'


def _worst_in_full(answer: StatusAnswer) -> str:
    worst = answer.worst_class
    if worst is None:
        return UNKNOWN
    forgot = f"forgot {worst.forgetting:.1%}, {worst.n:,} held out"
    return f"{_class_name(worst.name)}: {worst.accuracy:.1%} ({forgot})"


def _next_snapshot(answer: StatusAnswer) -> str:
    left = answer.next_snapshot_seconds
    if left is None:
        return UNKNOWN
    return f"in {days(left)}" if left >= 1 else "now"


def _newest_snapshot(answer: StatusAnswer) -> str:
    newest = answer.snapshot
    if newest is None:
        return UNKNOWN
    return f"{newest.generation}-{newest.sequence}, {days(max(0.0, answer.time - newest.time))} ago"


def _version(answer: StatusAnswer) -> str:
    waiting = f" (+{answer.registrations_waiting:,})" if answer.registrations_waiting else ""
    return (UNKNOWN if answer.registered_version is None else printable(answer.registered_version.version)) + waiting


def _version_in_full(answer: StatusAnswer) -> str:
    waiting = answer.registrations_waiting
    known = UNKNOWN if answer.registered_version is None else printable(answer.registered_version.version)
    return f"{known}, {waiting:,} wait for MLflow" if waiting else known


def _moment(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds).astimezone().isoformat(sep=" ", timespec="seconds")
