"""A report in a real browser: its figures, every value by keys, both themes, a phone, labels that mean harm."""

from __future__ import annotations

import random
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from consumers.page.baseline import BaselineLook
from consumers.page.document import report_document
from consumers.page.event_log import EventLog
from consumers.page.history_json import history_json
from consumers.page.standing import Standing
from consumers.page.told_event import event_of
from consumers.state_standing import newest_standing
from pipeline.evaluation.forgetting import ForgettingHistory
from pipeline.settings import LearnerSettings
from tests.browser.watched_page import OpenPage
from tests.consumers.page.learnt_digits import learnt
from tests.deploy.report_file import embedded

pytestmark = pytest.mark.slow

PHONE = 360
NOW = 1_700_000_000.0
HOSTILE = [
    "<img src=x onerror='window.harmed = 1'>",
    "</script><script>window.harmed = 1</script>",
    "{{data}}",
    "\u202egnitirw",
    "",
    "   ",
    "\x00\n\t",
    "__proto__",
    "constructor",
    "語" * 85,
    "a" * 256,
    "&amp;",
]


def made_standing(labels: list[str], evaluations: int, *, seed: int = 0) -> Standing:
    """Classes that come one after the other, and are forgotten a little."""
    draws, history = random.Random(seed), ForgettingHistory(LearnerSettings().evaluation)
    for number in range(evaluations):
        known = labels[: 1 + number * len(labels) // max(1, evaluations - 1)]
        history.record(200 * (number + 1), {label: (draws.uniform(0.3, 1.0), 25) for label in known})
    replay = {label: draws.randrange(50) for label in labels}
    return Standing(
        report=history.newest_report(), course=history.course, replay=replay, records_consumed=200 * evaluations
    )


def made_report(
    file: Path, standing: Standing, *, events: EventLog | None = None, plain: bool = False
) -> dict[str, Any]:
    """Written to `file`; what it holds."""
    baseline = None
    if plain:
        state = learnt(file.parent / "plain", retention={}).folder
        baseline = BaselineLook(number=1, found=newest_standing(state))
    history = history_json(
        stream="digits",
        branch="main",
        standing=standing,
        events=(events or EventLog()).lines,
        baseline=baseline,
        baseline_title="no retention",
        more={"made_at": NOW, "snapshot": {"generation": 1, "sequence": 7, "time": NOW}},
    )
    file.write_bytes(report_document(history, stream="digits", branch="main"))
    return embedded(file)


def some_events() -> EventLog:
    log = EventLog()
    told: list[tuple[str, dict[str, Any]]] = [
        ("new_class", {"class": HOSTILE[0]}),
        ("drift", {"detector": "page_hinkley"}),
        ("restructuring_requested", {"kind": "expansion", "reason": "new_classes", "new_classes": HOSTILE}),
        ("adopted", {"job": "expansion-5"}),
        ("version_registered", {"version": 1, "tags": {"palimpsest.trigger": "periodic"}}),
        ("promoted", {"from": None, "to": 1, "by": "ada"}),
        ("promotion_refused", {"to": 2, "reasons": [HOSTILE[1]]}),
        ("accepted_gap", {"why": ["retention was quicker"]}),
    ]
    log.add(
        event_of(f"{kind}-{round_}", kind, {**data, "records_consumed": 300 * place}, time_seconds=NOW + place + round_)
        for round_ in range(10)
        for place, (kind, data) in enumerate(told)
    )
    return log


def percent(share: float | None) -> str:
    """Halves are rounded up, as JavaScript does."""
    return "–" if share is None else f"{Decimal(share * 100).quantize(Decimal('0.1'), ROUND_HALF_UP)}%"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A learner's own state beside a plain one's: the address, and the data."""
    folder = tmp_path_factory.mktemp("report")
    found = newest_standing(learnt(folder / "own").folder)
    assert found is not None
    file = folder / "report.html"
    return file.as_uri(), made_report(file, found.standing, events=some_events(), plain=True)


def test_its_figures_are_those_of_the_state(digits: tuple[str, dict[str, Any]], open_page: OpenPage) -> None:
    url, told = digits
    view = open_page(url)
    evaluated, beside = told["evaluated"], told["baseline"]["evaluated"]
    tiles = view.tiles()
    assert tiles["Average accuracy"] == (percent(evaluated["accuracy"]), f"no retention: {percent(beside['accuracy'])}")
    assert tiles["Average forgetting"][0] == percent(evaluated["forgetting"])
    assert tiles["Snapshot"][0] == "1-7"
    assert tiles["Records"][0] == f"{told['records']:,}"
    rows = view.rows("#classes")
    assert len(rows) == len(told["classes"])
    for row, entry in zip(rows, told["classes"], strict=True):
        plain = told["baseline"]["classes"][entry["name"]]
        assert row == [
            entry["name"],
            f"{percent(entry['accuracy'])} ± {100 * entry['error']:.1f}",
            percent(entry["best"]),
            percent(entry["forgetting"]),
            percent(plain["accuracy"]),
            percent(plain["forgetting"]),
            str(entry["n"]),
            str(entry["replay"]),
        ]
    assert (view.text("h1"), view.text("#state")) == ("digits", "a report")
    assert view.complaints == []
    assert view.requests == [url], "it holds all that it shows"


def test_every_cell_is_reached_by_keys_and_is_what_the_table_says(
    digits: tuple[str, dict[str, Any]], open_page: OpenPage
) -> None:
    url, told = digits
    view = open_page(url)
    view.page.locator("#moments summary").focus()
    view.page.keyboard.press("Enter")
    columns = told["course"]["at"]
    assert len(columns) <= 12, "one page of the table"
    table = {row[0]: row[1:] for row in view.rows("#moments")}
    view.plot("map").focus()
    view.page.keyboard.press("Home")
    for row, entry in enumerate(told["classes"]):
        for column, at in enumerate(columns):
            units = entry["course"][column]
            figure = "not known yet" if units is None else percent(units / 10_000)
            said = view.text("#readout")
            assert said.startswith(f"{entry['name']} after {at:,} records: {figure}"), (row, column)
            assert table[entry["name"]][column] == percent(None if units is None else units / 10_000)
            view.page.keyboard.press("ArrowRight")
        view.page.keyboard.press("Home")
        view.page.keyboard.press("ArrowDown")
    for name in ("accuracy", "forgetting"):
        view.plot(name).focus()
        view.page.keyboard.press("Home")
        for column, at in enumerate(columns):
            said = view.text("#readout")
            assert said.startswith(
                f"after {at:,} records: average accuracy {percent(told['course']['accuracy'][column])}"
            )
            assert f"average forgetting {percent(told['course']['forgetting'][column])}" in said
            assert table[f"average {name}"][column] == percent(told["course"][name][column])
            view.page.keyboard.press("ArrowRight")
    view.page.keyboard.press("Escape")
    assert view.text("#readout").startswith("Point at the picture")
    assert view.complaints == []


def test_the_map_has_the_colours_of_its_accuracies(digits: tuple[str, dict[str, Any]], open_page: OpenPage) -> None:
    """In the middle of each cell; brighter is better, and what is not known is left empty."""
    url, told = digits
    view = open_page(url)
    columns = told["course"]["at"]
    shades: list[tuple[int, float]] = []
    for row, entry in enumerate(told["classes"]):
        view.plot("map").focus()
        for column in range(len(columns)):
            red, green, blue, alpha = view.js(
                """([row, column, columns, rows]) => {
                    const canvas = document.getElementById('cells');
                    const box = document.querySelector('#map .cell');
                    const scale = canvas.width / canvas.clientWidth;
                    const x = (box.offsetLeft + box.offsetWidth / 2) * scale;
                    return [...canvas.getContext('2d').getImageData(x, (row + 0.5) * canvas.height / rows, 1, 1).data];
                }""",
                _at(view, row, column, len(columns), len(told["classes"])),
            )
            units = entry["course"][column]
            assert (alpha == 0) == (units is None)
            if units is not None:
                shades.append((units, 0.2126 * red + 0.7152 * green + 0.0722 * blue))
    shades.sort()
    assert len({units for units, _ in shades}) > 3
    for (lower, darker), (higher, lighter) in pairwise(shades):
        assert (darker < lighter) if higher - lower > 200 else (darker <= lighter + 2)


def _at(view: Any, row: int, column: int, columns: int, rows: int) -> list[int]:
    """Put the cursor there by keys."""
    view.page.keyboard.press("Home")
    for _ in range(rows):
        view.page.keyboard.press("ArrowUp")
    for _ in range(row):
        view.page.keyboard.press("ArrowDown")
    for _ in range(column):
        view.page.keyboard.press("ArrowRight")
    return [row, column, columns, rows]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, 1200])
def test_contrast_names_and_order_are_without_fault(
    digits: tuple[str, dict[str, Any]], open_page: OpenPage, width: int, scheme: str
) -> None:
    view = open_page(digits[0], width=width, scheme=scheme)
    view.page.locator("#moments summary").click()
    view.plot("map").focus()
    view.page.keyboard.press("ArrowLeft")
    assert view.accessibility_faults() == []
    assert not view.scrolls_sideways()
    assert view.complaints == []


def test_light_and_dark_are_two(digits: tuple[str, dict[str, Any]], open_page: OpenPage) -> None:
    def brightness(scheme: str) -> tuple[float, float]:
        view = open_page(digits[0], scheme=scheme)
        sums = [
            sum(map(int, view.js(f"() => getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3)")))
            for name in ("backgroundColor", "color")
        ]
        return sums[0], sums[1]

    light, dark = brightness("light"), brightness("dark")
    assert light[0] > 700 > 200 > light[1]
    assert dark[0] < 100 < 600 < dark[1]


def test_nothing_moves_for_those_who_do_not_want_it(digits: tuple[str, dict[str, Any]], open_page: OpenPage) -> None:
    view = open_page(digits[0])
    view.js("() => document.querySelector('.state-dot').dataset.state = 'learning'")
    animation = "() => getComputedStyle(document.querySelector('.state-dot')).animationName"
    assert view.js(animation) == "breathe"
    view.page.emulate_media(reduced_motion="reduce")
    assert view.js(animation) == "none"


@pytest.mark.parametrize("width", [PHONE, 1200])
def test_labels_that_mean_harm_are_only_shown(tmp_path: Path, open_page: OpenPage, width: int) -> None:
    file = tmp_path / "report.html"
    made_report(file, made_standing(HOSTILE, 30), events=some_events())
    view = open_page(file.as_uri(), width=width)
    view.page.locator("#moments summary").click()
    names = [row[0] for row in view.rows("#classes")]
    assert names[:6] == [HOSTILE[0], HOSTILE[1], HOSTILE[2], "\\u{202e}gnitirw", '""', '"   "']
    assert names[6:] == ["\\u{0}\\u{a}\\u{9}", *HOSTILE[7:]]
    assert view.js("() => window.harmed") is None
    assert view.js("() => document.querySelectorAll('img, iframe').length") == 0
    assert HOSTILE[1] in view.text("#events")
    assert not view.scrolls_sideways()
    assert view.complaints == []
    assert view.accessibility_faults() == []


def test_hundreds_of_classes_are_shown_some_at_a_time_and_all_are_reached(tmp_path: Path, open_page: OpenPage) -> None:
    file, labels = tmp_path / "report.html", [f"class {number}" for number in range(300)]
    told = made_report(file, made_standing(labels, 600))
    assert len(told["course"]["at"]) <= 400
    view = open_page(file.as_uri(), width=PHONE)
    accuracies = {entry["name"]: entry["accuracy"] for entry in told["classes"]}
    shown = [row[0] for row in view.rows("#classes")]
    worst = sorted(labels, key=lambda label: (accuracies[label], labels.index(label)))
    assert shown == worst[:40], "the worst ones first"
    assert not view.scrolls_sideways()
    seen: list[str] = []
    following = view.page.locator("#class-pages button").last
    while True:
        seen += [row[0] for row in view.rows("#classes")]
        if following.is_disabled():
            break
        following.click()
    assert sorted(seen) == sorted(labels)
    # By keys: the next page of the map
    view.page.locator("#class-pages button").first.click()
    view.plot("map").focus()
    view.page.keyboard.press("PageDown")
    assert worst[280] in view.text("#readout")
    view.page.locator("#find").fill("class 123")
    assert [row[0] for row in view.rows("#classes")] == ["class 123"]
    view.page.locator("#find").fill("")
    view.page.locator("#order").select_option("name")
    assert [row[0] for row in view.rows("#classes")] == labels[:40], "numbers in names count as numbers"
    assert view.complaints == []


def test_the_table_of_the_picture_goes_through_all_evaluations(tmp_path: Path, open_page: OpenPage) -> None:
    file = tmp_path / "report.html"
    told = made_report(file, made_standing(["a", "b"], 100))
    view = open_page(file.as_uri())
    view.page.locator("#moments summary").click()

    def heads() -> list[str]:
        found = view.js("() => [...document.querySelectorAll('#moments thead th')].map(head => head.innerText)")
        return [str(head) for head in found[1:]]

    seen = heads()
    back = view.page.locator("#moments-body button").first
    while not back.is_disabled():
        back.click()
        seen = [*heads(), *seen]
    assert seen == [f"{at:,}" for at in told["course"]["at"]]


def test_before_the_first_evaluation_it_says_so(tmp_path: Path, open_page: OpenPage) -> None:
    file = tmp_path / "report.html"
    empty = ForgettingHistory(LearnerSettings().evaluation)
    log = EventLog()
    log.set_problem("the brokers are away")
    made_report(file, Standing(report=None, course=empty.course), events=log)
    view = open_page(file.as_uri(), width=PHONE)
    assert view.text("#empty").startswith("Nothing was evaluated yet")
    assert view.page.locator("#drawn").is_hidden()
    assert view.text("#events-problem") == "Events are missing: the brokers are away"
    assert view.tiles()["Average accuracy"] == ("–", "")
    assert view.accessibility_faults() == []
    assert view.complaints == []
