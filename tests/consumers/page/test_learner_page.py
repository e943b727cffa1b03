"""The page's answers over HTTP: fresh, packed, not sent twice, and never at the cost of the learner."""

from __future__ import annotations

import gzip
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from consumers.events import event_message
from consumers.http_server import HttpServer
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.page import event_follower, learner_page
from consumers.page.baseline import Baseline, BaselineLook
from consumers.page.event_follower import EventFollower
from consumers.page.event_log import EventLog
from consumers.page.history_json import history_json
from consumers.page.learner_page import LearnerPage
from consumers.record_source import RecordSource, SourceUnavailable
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import STREAM, World, run
from tests.consumers.page.learnt_digits import RECORDS_PER_STEP, learnt
from tests.waiting import wait_until

DEADLINE_SECONDS = 30.0


def new_page(events: EventLog | None = None, follower: EventFollower | None = None) -> LearnerPage:
    return LearnerPage(
        stream=STREAM,
        branch="main",
        events=events or EventLog(),
        follower=follower,
        baseline=None,
        baseline_title="no retention",
    )


@contextmanager
def served(page: LearnerPage) -> Iterator[str]:
    with HttpServer(page.routes, name="page", host="127.0.0.1", port=0, in_use="") as server:
        yield server.url


def ask(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """`If_None_Match="..."` is the header If-None-Match."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=named), timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def history(url: str) -> dict[str, Any]:
    status, _, body = ask(f"{url}/history")
    assert status == 200
    told = json.loads(body)
    assert isinstance(told, dict)
    return told


@pytest.fixture
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_page, "_REST_FACTOR", 0)


def test_the_page_comes_with_its_policy() -> None:
    with served(new_page()) as url:
        status, headers, body = ask(url)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'sha256-")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert body.startswith(b"<!doctype html>")
        _, headers, packed = ask(url, Accept_Encoding="br, gzip")
        assert (headers["Content-Encoding"], headers["Vary"]) == ("gzip", "Accept-Encoding")
        assert gzip.decompress(packed) == body
        for refused in ("gzip;q=0", "br", ""):
            assert "Content-Encoding" not in ask(url, Accept_Encoding=refused)[1]


def test_a_path_that_is_not_there_says_which_are() -> None:
    with served(new_page()) as url:
        status, _, body = ask(f"{url}/nothing")
        assert (status, body) == (404, b"there are / and /history\n")


@pytest.mark.usefixtures("_no_rest")
def test_it_follows_the_learner_and_survives_its_restart(tmp_path: Path) -> None:
    world, page = World(tmp_path), new_page()
    with served(page) as url:
        assert history(url)["course"] is None
        world.write(digit_stream(RECORDS_PER_STEP, steps=1))
        world.learn(observer=page)
        first = history(url)
        assert first["course"]["at"]
        world.write(digit_stream(RECORDS_PER_STEP, steps=3)[-2 * RECORDS_PER_STEP :])
        again = new_page()
        process = world.process(observer=again)
        process.start()
        with served(again) as other:
            before = history(other)
            assert before["course"] == first["course"], "the history is that of the state"
            assert [entry["course"] for entry in before["classes"]] == [entry["course"] for entry in first["classes"]]
            run(process)
            after = history(other)
        assert after["course"]["at"][: len(first["course"]["at"])] == first["course"]["at"]
        assert len(after["course"]["at"]) > len(first["course"]["at"])
        assert after["evaluated"]["classes"] > first["evaluated"]["classes"]


@pytest.mark.usefixtures("_no_rest")
def test_what_has_not_changed_is_not_sent(tmp_path: Path) -> None:
    events = EventLog()
    page = new_page(events)
    learnt(tmp_path, observer=page)
    with served(page) as url:
        _, headers, _ = ask(f"{url}/history")
        status, _, body = ask(f"{url}/history", If_None_Match=headers["ETag"])
        assert (status, body) == (304, b"")
        events.set_problem("away")
        status, newer, body = ask(f"{url}/history", If_None_Match=headers["ETag"])
        assert status == 200
        assert json.loads(body)["events"]["problem"] == "away"
        assert newer["ETag"] != headers["ETag"]
    with served(new_page()) as url:
        assert ask(f"{url}/history", If_None_Match=headers["ETag"])[0] == 200, "another run's says nothing"


def test_it_is_made_once_for_all_who_ask_and_not_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def slow(**about: Any) -> bytes:
        made.append(time.monotonic())
        time.sleep(0.2)
        return history_json(**about)

    monkeypatch.setattr(learner_page, "history_json", slow)
    events = EventLog()
    page = new_page(events)
    learnt(tmp_path, observer=page)
    with served(page) as url:
        bodies: list[dict[str, Any]] = []
        threads = [threading.Thread(target=lambda: bodies.append(history(url))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1
        assert len(bodies) == 8
        for number in range(10):
            events.set_problem(str(number))
            history(url)
        assert len(made) == 1, "it rests 19 times as long as it took"
        deadline = time.monotonic() + DEADLINE_SECONDS
        while history(url)["events"]["problem"] != "9":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(made) == 2
        assert made[1] - made[0] >= 0.2 * 20


class Hanging(Baseline):
    """On a disk that does not answer."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"), stream=STREAM)
        self.asked, self.answers = threading.Event(), threading.Event()
        self.answers.set()

    def look(self) -> BaselineLook:
        self.asked.set()
        assert self.answers.wait(DEADLINE_SECONDS)
        return BaselineLook(number=1, problem="away")


@pytest.mark.parametrize("has_one_before", [False, True])
@pytest.mark.usefixtures("_no_rest")
def test_a_baseline_that_hangs_holds_one_thread_and_no_more(
    monkeypatch: pytest.MonkeyPatch, *, has_one_before: bool
) -> None:
    monkeypatch.setattr(learner_page, "_MAKING_SECONDS", 0.05)
    baseline = Hanging()
    page = LearnerPage(
        stream=STREAM, branch="main", events=EventLog(), follower=None, baseline=baseline, baseline_title="other"
    )
    with served(page) as url:
        if has_one_before:
            history(url)
        baseline.answers.clear()
        baseline.asked.clear()
        first = threading.Thread(target=history, args=(url,))
        first.start()
        assert baseline.asked.wait(DEADLINE_SECONDS)
        status, headers, body = ask(f"{url}/history")
        if has_one_before:
            assert (status, json.loads(body)["stream"]) == (200, STREAM)
        else:
            assert (status, headers["Retry-After"]) == (503, "10")
        baseline.answers.set()
        first.join()
        assert history(url)["baseline"]["problem"] == "away"


@pytest.mark.usefixtures("_no_rest")
def test_a_branch_that_tells_nothing_shows_what_happens_from_now_on(tmp_path: Path) -> None:
    page = new_page()
    learnt(tmp_path, observer=page)
    with served(page) as url:
        lines = history(url)["events"]["lines"]
        names = [entry["name"] for entry in history(url)["classes"]]
    assert {line["text"] for line in lines} == {f"class {name} is new" for name in names}
    assert len(lines) == len(names) == 6
    assert all(line["at"] is not None for line in lines)


# -- events ------------------------------------------------------------------------------------------------------------


class Topic:
    """A topic in memory that may be missing, or its brokers away."""

    def __init__(self) -> None:
        self.log = InMemoryLog(f"{STREAM}.events")
        self.is_there = True
        self.is_away = False
        self.opened = 0

    def tell(self, key: str) -> None:
        message = event_message(
            stream=STREAM, branch="main", kind="new_class", key=key, data={"class": key}, time_seconds=time.time()
        )
        self.log.append(message.value, key=message.key, headers=message.headers)

    def open(self) -> RecordSource | None:
        self.opened += 1
        if self.is_away:
            raise SourceUnavailable("the brokers are away")
        return InMemoryRecordSource(self.log) if self.is_there else None


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_POLL_SECONDS", "_RETRY_SECONDS", "_LOOK_SECONDS"):
        monkeypatch.setattr(event_follower, name, 0.02)


def ids(events: EventLog) -> list[str]:
    return [event.id.rpartition("/")[2] for event in events.lines.events]


@pytest.mark.usefixtures("_quick")
def test_events_are_read_from_when_somebody_looks() -> None:
    topic, events = Topic(), EventLog()
    topic.tell("before")
    with EventFollower(topic.open, events) as follower, served(new_page(events, follower)) as url:
        assert topic.opened == 0, "a page that nobody opens costs nothing"
        ask(url)
        wait_until(lambda: ids(events) == ["before"])
        topic.tell("after")
        topic.tell("after")
        wait_until(lambda: ids(events) == ["before", "after"])


@pytest.mark.usefixtures("_quick")
def test_brokers_that_are_away_are_told_and_come_back() -> None:
    topic, events = Topic(), EventLog()
    topic.is_away = True
    topic.tell("one")
    with EventFollower(topic.open, events) as follower:
        follower.look()
        wait_until(lambda: events.lines.problem == "the brokers are away")
        topic.is_away = False
        wait_until(lambda: ids(events) == ["one"] and events.lines.problem is None)


@pytest.mark.usefixtures("_quick")
def test_a_bug_that_ends_the_reading_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_source() -> RecordSource:
        raise AssertionError("a bug")

    shown: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    events = EventLog()
    with EventFollower(no_source, events) as follower:
        follower.look()
        wait_until(lambda: shown)
    assert (events.lines.problem or "").startswith("reading them ended by a bug")


@pytest.mark.usefixtures("_quick")
def test_a_topic_that_comes_later_is_read_then() -> None:
    topic, events = Topic(), EventLog()
    topic.is_there = False
    with EventFollower(topic.open, events) as follower:
        follower.look()
        wait_until(lambda: topic.opened >= 2)
        topic.tell("one")
        topic.is_there = True
        wait_until(lambda: ids(events) == ["one"])


@pytest.mark.usefixtures("_quick")
def test_the_brokers_are_let_go_of_when_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_follower, "_REST_SECONDS", 0.2)
    topic, events = Topic(), EventLog()
    topic.tell("one")
    with EventFollower(topic.open, events) as follower:
        follower.look()
        wait_until(lambda: ids(events) == ["one"])
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "page-events"])
        topic.tell("two")
        follower.look()
        wait_until(lambda: ids(events) == ["one", "two"])
