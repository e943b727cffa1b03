"""Puts a learner's page together: its events, and the learner beside which it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from consumers.page.baseline import Baseline
from consumers.page.event_follower import EventFollower, events_topic
from consumers.page.event_log import EventLog
from consumers.page.learner_page import LearnerPage
from consumers.topics import MAIN_BRANCH
from deploy.settings import Settings


@contextmanager
def page_of_learner(settings: Settings, *, stream: str, branch: str) -> Iterator[LearnerPage]:
    """Only the branch that tells events has any to read. They are read while somebody looks, until the end of this."""
    events = EventLog()
    follower = None
    if branch == MAIN_BRANCH:
        follower = EventFollower(events_topic(settings.kafka, stream), events)
    beside = settings.page.baseline_state
    with follower or nullcontext():
        yield LearnerPage(
            stream=stream,
            branch=branch,
            events=events,
            follower=follower,
            baseline=None if beside is None else Baseline(beside, stream=stream),
            baseline_title=settings.page.baseline_title,
        )
