"""A day of the live page: thousands of changes, and neither the browser nor the server keeps more for it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

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

pytestmark = pytest.mark.slow

CHANGES = 3_000
WARM = 600  # changes until every table is full
CLASSES = [f"class {number}" for number in range(30)]


def measured(view: WatchedPage) -> Mapping[str, float]:
    """Of the tab, with nothing left that could be let go of."""
    session = view.page.context.new_cdp_session(view.page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    told = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    session.detach()
    return told


@pytest.mark.timeout(900)
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
        view.page.locator("#moments summary").click()
        for number in range(1, CHANGES + 1):
            change(number)
            with view.page.expect_response("**/history") as answered:
                view.page.clock.run_for(30_000)
            assert answered.value.status == 200
            if number in (WARM, CHANGES):
                answered.value.finished()
                bodies[number] = len(answered.value.body())
                view.page.locator(f"text=As evaluated after {learner.records_consumed:,} records").wait_for()
                sizes[number] = measured(view)
        # Without a change nothing is sent, and nothing is drawn again.
        view.js(
            """() => {
                window.changes = 0;
                const watcher = new MutationObserver(found => { window.changes += found.length; });
                watcher.observe(document.getElementById('picture'), {childList: true, subtree: true});
            }"""
        )
        with view.page.expect_response("**/history") as answered:
            view.page.clock.run_for(30_000)
        assert answered.value.status == 304
        with view.page.expect_response("**/history") as answered:
            view.page.clock.run_for(30_000)
        assert answered.value.status == 304
        assert view.js("() => window.changes") == 0
        assert view.complaints == []
    warm, end = sizes[WARM], sizes[CHANGES]
    assert end["Nodes"] < 1.1 * warm["Nodes"], (warm["Nodes"], end["Nodes"])
    assert end["JSEventListeners"] <= warm["JSEventListeners"] + 2
    assert end["JSHeapUsedSize"] < 1.25 * warm["JSHeapUsedSize"] + 1e6, (warm["JSHeapUsedSize"], end["JSHeapUsedSize"])
    assert bodies[CHANGES] < 1.2 * bodies[WARM] + 20_000
    assert len(events.lines.events) == MOST_EVENTS
