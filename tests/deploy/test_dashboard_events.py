"""The dashboards' events on made-up series, by promtool: what they fire at, and that a restart is nothing to them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.dashboard_files import Asked, all_asked
from tests.system_package import require_program

STEP_SECONDS = 15  # of the scrapes and of the graph
VARIABLES = {"instance": ".+", "__interval": "15s", "__rate_interval": "1m"}
HERE = 'instance="a:9095"'
MOVED = 'instance="b:9095"'
ADOPTED = f'{{{HERE}, outcome="adopted"}}'


@dataclass(frozen=True, slots=True)
class Case:
    """Series in promtool's notation (`_`: no sample; `stale`: the process is gone), and at which samples it fires."""

    event: str
    what: str
    series: dict[str, str]
    fires_at: set[int]
    until: int


def known(values: str, where: str = HERE) -> dict[str, str]:
    return {f"palimpsest_known_classes{{{where}}}": values}


def counted(name: str, values: str, labels: str) -> dict[str, str]:
    return {f"{name}{labels}": values}


def answering(*versions: tuple[str, str], served: str) -> dict[str, str]:
    """model_info of each version, and the number that is served; by one champion."""
    role = f'{HERE}, role="champion"'
    return {
        f"palimpsest_served_version{{{role}}}": served,
        **{f'palimpsest_model_info{{{role}, version="{version}"}}': shown for version, shown in versions},
    }


def registered(*versions: tuple[str, str], classes: str) -> dict[str, str]:
    return {
        **known(classes),
        **{
            f'palimpsest_model_info{{{HERE}, role="newest", version="{version}"}}': shown for version, shown in versions
        },
    }


# An increment is seen for the length of the window over which growth is asked for: a minute, four samples.
MINUTE = 4
CASES = [
    Case("New class", "one more", known("3 3 4 4 4 4"), {2}, 5),
    Case("New class", "the first of all", known("0 0 1 1 2 2"), {2, 4}, 5),
    Case("New class", "a restart, 0 until the state is loaded", known("3 3 stale _ 0 0 3 3"), set(), 7),
    Case("New class", "a restart at another address", known("3 3 stale _x9") | known("_x3 0 3 3", MOVED), set(), 8),
    Case("New class", "a restart that a new class follows", known("3 3 stale 0 3 4 4"), {5}, 6),
    Case("New class", "an older snapshot", known("5 5 3 3 4 4"), set(), 5),
    Case("New class", "nothing was there before", known("_ _ 7 7 7"), set(), 4),
    *(
        case
        for event, name, labels in (
            ("Drift", "palimpsest_drift_events_total", f'{{{HERE}, detector="adwin"}}'),
            ("Consolidation", "palimpsest_consolidations_total", ADOPTED),
            ("Expansion", "palimpsest_expansions_total", ADOPTED),
            ("Promotion", "palimpsest_promotions_total", f'{{{HERE}, outcome="promoted"}}'),
        )
        for case in (
            Case(event, "one", counted(name, "0 0 1 1 1 1 1 1 1", labels), set(range(2, 2 + MINUTE)), 8),
            Case(event, "none", counted(name, "2 2 2 2 2 2", labels), set(), 5),
            Case(event, "a restart", counted(name, "2 2 stale _ 0 0 0 0", labels), set(), 7),
            Case(event, "a quick restart", counted(name, "2 2 0 0 0 0 0", labels), set(), 6),
            Case(event, "one after a restart", counted(name, "2 2 0 1 1 1 1 1 1", labels), set(range(3, 7)), 8),
        )
    ),
    Case(
        "Consolidation",
        "a refusal is no adoption",
        counted("palimpsest_consolidations_total", "0 0 1 1 1", f'{{{HERE}, outcome="refused"}}'),
        set(),
        4,
    ),
    Case("Serving", "another version", answering(("1", "1 1 stale"), ("2", "_ _ 1 1 1"), served="1 1 2 2 2"), {2}, 4),
    Case(
        "Serving", "back again", answering(("1", "1 1 stale 1 1"), ("2", "_ _ 1 stale"), served="1 1 2 1 1"), {2, 3}, 4
    ),
    Case("Serving", "a restart", answering(("1", "1 1 stale _ 1 1"), served="1 1 stale 0 1 1"), set(), 5),
    Case("Serving", "the first start", answering(("1", "_ _ 1 1"), served="_ 0 1 1"), set(), 3),
    Case("Registered", "a new one", registered(("4", "1 1 stale"), ("5", "_ _ 1 1 1"), classes="9x5"), {2}, 4),
    Case("Registered", "the first", registered(("1", "_ _ 1 1"), classes="9x5"), {2}, 3),
    Case(
        "Registered",
        "a start that shows it again",
        registered(("4", "1 stale _ 1 1"), classes="9 stale 0 9 9"),
        set(),
        4,
    ),
]


def test_events_fire_at_what_happened_and_not_at_a_restart(tmp_path: Path) -> None:
    promtool = require_program("promtool", package="prometheus")
    seconds = f"{STEP_SECONDS}s"
    # Samples are loaded from one evaluation to the next: with promtool's minute the last ones would be missing.
    suite = {"evaluation_interval": seconds, "tests": [{"interval": seconds, **_suite(case)} for case in CASES]}
    file = tmp_path / "events.yaml"
    file.write_text(yaml.safe_dump(suite))
    checked = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _suite(case: Case) -> dict[str, Any]:
    # As a comment, since promtool shows the expression of what failed and not the name of its case.
    expr = f"count(({_event(case.event).filled_in(VARIABLES)}) > 0)  # {case.event}: {case.what}"
    return {
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [
            {
                "expr": expr,
                "eval_time": f"{sample * STEP_SECONDS}s",
                "exp_samples": [{"labels": "{}", "value": 1}] if sample in case.fires_at else [],
            }
            for sample in range(case.until + 1)
        ],
    }


def test_a_restart_is_shown_at_the_moment_the_process_began() -> None:
    assert _event("Restart").expr == '1000 * process_start_time_seconds{instance=~"$instance"}', "Grafana counts in ms"


def test_every_event_but_the_restart_has_cases() -> None:
    events = {one.where.split(" / event ")[1] for one in all_asked() if " / event " in one.where}
    assert events - {"Restart"} == {case.event for case in CASES}


def _event(name: str) -> Asked:
    return next(one for one in all_asked() if one.where.endswith(f" / event {name}"))
