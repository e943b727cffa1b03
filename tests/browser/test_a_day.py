"""A day of the live page: thousands of changes, and neither the browser nor the server keeps more for it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from consumers.http_server import HttpServer
from consumers.learner_status import LearnerStatus
from consumers.page import learner_page
from consumers.page.event_log import MOST_EVENTS, EventLog
from consumers.page.learner_page import LearnerPage
from consumers.page.told_event import event_of
from consumers.process_settings import SnapshotSettings
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StreamLearner
from tests.browser.watched_page import OpenPage, WatchedPage

if TYPE_CHECKING:
    from playwright.sync_api import Response

pytestmark = pytest.mark.slow

CHANGES = 2_000  # as a day has, where one comes about every 45 seconds
WARM = 550  # changes until all that is bounded is full
# Time in the page that is let pass at once: longer than it waits before it asks, shorter than it waits for an answer.
STEP_MS = 6_000
ANSWER_SECONDS = 5.0  # of real time, in which the server has answered
DEADLINE_SECONDS = 60.0
CLASSES = [f"class {number}" for number in range(30)]


def measured(view: WatchedPage) -> Mapping[str, float]:
    """Of the tab, with nothing left that could be let go of."""
    session = view.page.context.new_cdp_session(view.page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    told = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    session.detach()
    return told


def let_pass(view: WatchedPage, is_there: Callable[[], bool]) -> None:
    """Time in the page, until it is as wanted."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        view.page.clock.fast_forward(STEP_MS)
        answered = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < answered:
            if is_there():
                return
            view.page.wait_for_timeout(5)
        assert time.monotonic() < deadline, (view.text("#classes"), view.complaints)


@pytest.mark.timeout(1_800)
def test_it_keeps_up_for_a_day(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes as quickly as the page draws: its clock is moved from look to look, and each finds a change."""
    monkeypatch.setattr(learner_page, "_REST_FACTOR", 0)  # of the server's clock, which does not move with it
    learner, draws, events = StreamLearner(LearnerSettings()), random.Random(0), EventLog()
    status = LearnerStatus(SnapshotSettings(), stream="digits", branch="main", device="cpu")
    page = LearnerPage(
        stream="digits", branch="main", events=events, follower=None, baseline=None, baseline_title="none"
    )

    def change(number: int) -> None:
        learner.records_consumed = 1_000 * (number + 1)
        known = CLASSES[: 1 + number // 5]
        report = learner.forgetting.record(
            learner.records_consumed, {label: (draws.uniform(0.5, 1.0), 30) for label in known}
        )
        for observer in (status, page):
            observer.evaluated(learner, report)
        about: dict[str, Any] = {"detector": "adwin", "records_consumed": learner.records_consumed}
        events.add([event_of(f"drift/{number}", "drift", about, time_seconds=1_700_000_000.0 + 30 * number)])

    sizes: dict[int, Mapping[str, float]] = {}
    bodies: dict[int, int] = {}
    for observer in (status, page):
        observer.started(learner, False)
    change(0)
    with HttpServer({**page.routes, **status.routes}, name="page", host="127.0.0.1", port=0, in_use="") as server:
        view = open_page(server.url, has_clock=True)
        answers: list[Response] = []
        view.page.on("response", lambda answer: answers.append(answer) if answer.url.endswith("/history") else None)
        view.page.locator("#moments summary").click()
        for number in range(1, CHANGES + 1):
            change(number)
            caption = f"As evaluated after {learner.records_consumed:,} records"
            let_pass(view, lambda: view.text("#classes caption").startswith(caption))  # noqa: B023
            if number in (WARM, CHANGES):
                bodies[number] = len(answers[-1].body())
                sizes[number] = measured(view)
            answers.clear()
        # Without a change nothing is sent, and nothing is drawn again.
        view.js(
            """() => {
                window.changes = 0;
                const watcher = new MutationObserver(found => { window.changes += found.length; });
                watcher.observe(document.getElementById('picture'), {childList: true, subtree: true});
            }"""
        )
        for _ in range(3):
            let_pass(view, lambda: bool(answers))
            assert {answer.status for answer in answers} == {304}
            answers.clear()
        assert view.js("() => window.changes") == 0
        assert view.complaints == []
    warm, end = sizes[WARM], sizes[CHANGES]
    assert end["Nodes"] < 1.1 * warm["Nodes"], (warm["Nodes"], end["Nodes"])
    assert end["JSEventListeners"] <= warm["JSEventListeners"] + 2
    assert end["JSHeapUsedSize"] < 1.25 * warm["JSHeapUsedSize"] + 1e6, (warm["JSHeapUsedSize"], end["JSHeapUsedSize"])
    assert bodies[CHANGES] < 1.2 * bodies[WARM] + 20_000
    assert len(events.lines.events) == MOST_EVENTS
