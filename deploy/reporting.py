"""`palimpsest report`: the learner's page as one file, of what its state folder and the stream's events say."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kafka.errors import KafkaError

from consumers import topics
from consumers.followed_topic import FollowedTopic
from consumers.kafka_connection import bootstrap_servers
from consumers.kafka_settings import KafkaSettings
from consumers.page.baseline import BaselineLook
from consumers.page.document import report_document
from consumers.page.event_follower import MOST_BACK, events_topic
from consumers.page.event_log import EventLines, EventLog
from consumers.page.history_json import history_json
from consumers.page.told_event import told_event
from consumers.record_source import SourceUnavailable
from consumers.state_standing import StateStanding, newest_standing, standing_at
from consumers.topics import MAIN_BRANCH
from deploy.settings import Settings
from model_store.durable_files import make_folder, replace_file
from pipeline.user_error import UserError

_CHUNK_RECORDS = 500
_POLL_SECONDS = 0.5
# For all events, once the brokers have answered; they are few beside the samples.
_READING_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What stands in the file."""

    stream: str
    branch: str
    generation: int
    sequence: int
    records: int
    evaluations: int  # that its history has
    evaluated_at: int | None  # records learnt from by the newest of them
    classes: int
    events: int
    events_problem: str | None  # why there may be more events than these, and the way out


def write_report(
    state: Path, out: Path, *, settings: Settings, baseline: Path | None = None, snapshot: str | None = None
) -> Report:
    """`snapshot` None: the newest whole one. `baseline` None: as the settings say.

    A learner that runs on this state is not disturbed: nothing is locked, and nothing written but `out`, which has its
    old content or all of the new one. Raises `UserError` where there is no whole snapshot, the baseline is another
    stream's, or `out` cannot be written; brokers that cannot be reached are a line in the report.
    """
    own = _standing(state, snapshot)
    beside = baseline or settings.page.baseline_state
    look = None if beside is None else _baseline(beside, own.stream)
    events = _events(settings.kafka, own)
    if snapshot is not None:
        events = _told_by(events, own.entry.manifest.written.timestamp())
    history = history_json(
        stream=own.stream,
        branch=own.branch,
        standing=own.standing,
        events=events,
        baseline=look,
        baseline_title=settings.page.baseline_title,
        more={"made_at": round(time.time(), 3), "snapshot": _snapshot(own)},
    )
    try:
        make_folder(out.absolute().parent)
        replace_file(out, report_document(history, stream=own.stream, branch=own.branch))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out") from None
    report = own.standing.report
    return Report(
        stream=own.stream,
        branch=own.branch,
        generation=own.entry.generation,
        sequence=own.entry.sequence,
        records=own.standing.records_consumed,
        evaluations=len(own.standing.course.rows_P),
        evaluated_at=None if report is None else report.at_records,
        classes=0 if report is None else report.known_classes,
        events=len(events.events),
        events_problem=events.problem,
    )


def _standing(state: Path, snapshot: str | None) -> StateStanding:
    if snapshot is not None:
        return standing_at(state, snapshot, option="--snapshot")
    found = newest_standing(state)
    assert found is not None, "none was known before"
    return found


def _baseline(state: Path, stream: str) -> BaselineLook:
    found = newest_standing(state)
    assert found is not None, "none was known before"
    if found.stream != stream:
        raise UserError(
            f"{state} holds the state of stream {found.stream!r}, not of {stream!r}; give another --baseline"
        )
    return BaselineLook(number=1, found=found)


def _snapshot(own: StateStanding) -> dict[str, Any]:
    entry = own.entry
    return {
        "generation": entry.generation,
        "sequence": entry.sequence,
        "time": round(entry.manifest.written.timestamp(), 3),
    }


def _events(kafka: KafkaSettings, own: StateStanding) -> EventLines:
    """All that lie there now, but for those that `MOST_BACK` leaves out."""
    log = EventLog()
    if own.branch != MAIN_BRANCH:
        log.set_problem(f"branch {own.branch!r} tells none, only {MAIN_BRANCH!r} does.")
        return log.lines
    topic = FollowedTopic(
        events_topic(kafka, own.stream), since_seconds=0.0, look_seconds=_READING_SECONDS, most_back=MOST_BACK
    )
    deadline = time.monotonic() + _READING_SECONDS
    try:
        topic.expect_more()
        while not topic.is_at_end:
            if time.monotonic() > deadline:
                raise SourceUnavailable(f"the brokers did not give all events within {_READING_SECONDS:.0f} s")
            records = topic.poll(_CHUNK_RECORDS, _POLL_SECONDS)
            log.add(event for record in records if (event := told_event(record)) is not None)
        if topic.is_missing:  # a learner makes it at its start: these are other brokers
            raise SourceUnavailable(f"there is no topic {topics.events(own.stream)}")
    except (SourceUnavailable, UserError, KafkaError) as error:
        servers = bootstrap_servers(kafka)
        log.set_problem(
            f"{str(error).rstrip('.')}. Make the report again when the brokers at {servers} answer, or give others "
            "with --bootstrap-servers."
        )
    finally:
        topic.close()
    return log.lines


def _told_by(events: EventLines, seconds: float) -> EventLines:
    """An older snapshot's report ends where it does. Roles are those of now, which nobody had then."""
    return replace(
        events,
        events=tuple(event for event in events.events if event.time_seconds <= seconds),
        versions=tuple(line for line in events.versions if line.time_seconds <= seconds),
        champion=None,
        previous=None,
    )
