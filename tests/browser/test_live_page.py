"""The live page in a real browser, of a real learner on a real broker that learns on, goes away and comes back."""

from __future__ import annotations

import json
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.embedded_kafka import EmbeddedKafka
from deploy.learning import open_learner
from deploy.local_port import free_port
from deploy.settings import load_settings
from tests.browser.watched_page import OpenPage, WatchedPage
from tests.deploy.command_line import Running
from tests.deploy.streams import send, settings_file

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

DEADLINE_SECONDS = 90.0
PHONE = 360


def ask(url: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/{path}", timeout=10) as answer:
        told = json.loads(answer.read())
    assert isinstance(told, dict)
    return told


def wait_for(view: WatchedPage, is_there: Callable[[], bool]) -> None:
    """While the page goes on with what it does."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_there():
        assert time.monotonic() < deadline, (view.tiles(), view.text("#state"), view.text("#trouble"), view.complaints)
        view.page.wait_for_timeout(100)


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def alike(shown: str, share: float | None) -> bool:
    """To the last figure that is shown, however halves are rounded."""
    if share is None:
        return shown == "–"
    return abs(float(shown.removesuffix("%")) - 100 * share) <= 0.0501


def wait_for_the_newest(view: WatchedPage, url: str) -> None:
    """The page asks for the history every few seconds."""

    def is_there() -> bool:
        told = ask(url, "history")
        caption, lines = f"As evaluated after {told['evaluated']['at']:,} records", told["events"]["lines"]
        return view.text("#classes caption").startswith(caption) and len(view.rows("#events")) == min(25, len(lines))

    wait_for(view, is_there)


def assert_shows(view: WatchedPage, history: dict[str, Any], status: dict[str, Any]) -> None:
    """The figures of an idle learner."""
    tiles = view.tiles()
    assert alike(tiles["Average accuracy"][0], status["average_accuracy"]), tiles
    assert alike(tiles["Average forgetting"][0], status["average_forgetting"]), tiles
    assert alike(tiles["Worst class"][0], status["worst_class"]["accuracy"]), tiles
    assert tiles["Worst class"][1] == status["worst_class"]["name"]
    assert alike(tiles["Accuracy on arrival"][0], status["prequential_accuracy"]), tiles
    assert tiles["Classes known"][0] == str(status["classes"])
    assert tiles["Records"][0] == f"{status['records_consumed']:,}"
    assert tiles["Lag"][0] == str(status["lag_records"]) == "0"
    assert tiles["Parameters"][0] == f"{status['network']['parameters']:,}"
    assert tiles["Dead letters"][0] == str(status["dead_letters"])
    snapshot = status["snapshot"]
    assert tiles["Next snapshot"][1].startswith(f"{snapshot['generation']}-{snapshot['sequence']} of ")
    rows = {row[0]: row for row in view.rows("#classes")}
    assert set(rows) == {entry["name"] for entry in history["classes"]}
    for entry in history["classes"]:
        row = rows[entry["name"]]
        assert alike(row[1].partition(" ± ")[0], entry["accuracy"])
        assert alike(row[3], entry["forgetting"])
        assert row[-1] == str(entry["replay"])
    events = [row[0] for row in view.rows("#events")]
    assert events == [line["text"] for line in reversed(history["events"]["lines"])][:25]


def test_it_shows_the_right_figures_and_goes_on_by_itself(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path, open_page: OpenPage
) -> None:
    """1. Beside what the learner says of itself, on a wide screen and on a phone.
    2. The learner learns on, and the page shows it without being loaded again.
    3. It goes away, and the page says since when; it comes back, and the page goes on.
    """
    port = free_port()
    more = "registry: {enabled: false}\nsnapshots: {every_seconds: 0.5}\n"
    more += f"page: {{baseline_state: '{tmp_path}/plain'}}\n"
    file = settings_file(tmp_path, kafka_broker, more)
    file.write_text(file.read_text().replace("metrics: {port: 0}", f"metrics: {{port: {port}}}"))
    send(kafka_broker, stream_name, 600)
    plain = tmp_path / "plain.yaml"
    plain.write_text(file.read_text().replace("learner:\n", "learner:\n  retention: {}\n").replace(str(port), "0"))
    settings = load_settings(plain)
    with open_learner(stream=stream_name, state=tmp_path / "plain", settings=settings, branch="plain") as opened:
        opened.process.run(stop=threading.Event(), until_idle_seconds=0.5)
    url = f"http://127.0.0.1:{port}"
    command = ("learn", "--stream", stream_name, "--state", tmp_path / "state", "--settings", file)

    def is_idle() -> bool:
        told = ask(url, "status")
        return told["state"] == "idle" and told["next_snapshot_seconds"] is None

    # 1.
    with Running(*command) as running:
        running.wait_for_event("snapshot")
        view, phone = open_page(url), open_page(url, width=PHONE, scheme="dark")
        for each in (view, phone):
            wait_for(each, is_idle)
            wait_for(each, lambda: each.text("#state") == "idle: all that came is learnt")  # noqa: B023
            wait_for(each, lambda: len(ask(url, "history")["events"]["lines"]) > 0)
            wait_for_the_newest(each, url)
            assert_shows(each, ask(url, "history"), ask(url, "status"))
            assert each.accessibility_faults() == []
            assert not each.scrolls_sideways()
        evaluated = ask(url, "history")["baseline"]["evaluated"]
        assert view.tiles()["Average forgetting"][1] == f"no retention: {percent(evaluated['forgetting'])}"
        phone.close()
        # 2.
        view.js("() => { window.mine = document.getElementById('map'); window.mine.focus(); }")
        columns = len(ask(url, "history")["course"]["at"])
        send(kafka_broker, stream_name, 900, seed=1)
        wait_for(view, lambda: view.tiles()["Records"][0] == "1,500")
        wait_for(view, is_idle)
        wait_for(view, lambda: view.tiles()["Lag"][0] == "0" and view.text("#state").startswith("idle"))
        assert len(ask(url, "history")["course"]["at"]) > columns
        wait_for_the_newest(view, url)
        assert_shows(view, ask(url, "history"), ask(url, "status"))
        assert view.js("() => window.mine === document.activeElement"), (
            "neither loaded anew nor out of somebody's hands"
        )
        assert view.hosts == {f"127.0.0.1:{port}"}
        assert view.complaints == []
        # 3.
        assert view.page.locator("#trouble").is_hidden()
        running.signal(signal.SIGTERM)
        assert running.end() == 0
    wait_for(view, lambda: view.text("#state") == "cannot be reached")
    assert view.text("#trouble").startswith("The learner cannot be reached since 20")
    assert view.tiles()["Records"][0] == "1,500", "what was known stays there"
    with Running(*command) as running:
        running.wait_for_event("started")
        wait_for(view, lambda: view.page.locator("#trouble").is_hidden() and view.text("#state").startswith("idle"))
        assert view.js("() => window.mine === document.getElementById('map')")
        view.complaints[:] = [each for each in view.complaints if "ERR_CONNECTION_REFUSED" not in each]
        assert view.complaints == []
        running.signal(signal.SIGTERM)
        assert running.end() == 0
