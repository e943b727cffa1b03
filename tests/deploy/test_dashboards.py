"""The dashboards as files: fresh, whole, and of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry

from consumers.metrics import LearnerMetrics
from consumers.predictor_metrics import PredictorMetrics
from consumers.process_settings import MetricsSettings
from consumers.shadow_metrics import ShadowMetrics
from consumers.worker_metrics import WorkerMetrics
from deploy.grafana import units
from deploy.grafana.board import BOARD_TAG
from deploy.grafana.generate import FOLDER, files, main
from tests.deploy.dashboard_files import all_asked, panels, read_boards
from tests.system_package import require_program

BOARDS = read_boards()
PANELS = [pytest.param(panel, id=f"{name}-{panel['id']}") for name, board in BOARDS.items() for panel in panels(board)]
VARIABLE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {value for name, value in vars(units).items() if name.isupper()}
# What Prometheus makes itself, or the client of every process.
METRICS_OF_OTHERS = {
    "up",
    "process_start_time_seconds",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "palimpsest_device_memory_bytes",  # only where learning runs on a GPU: consumers/device_memory.py
}
METRIC = re.compile(r"\b(?:palimpsest_|process_)\w+|\bup\b")
GRID_COLUMNS = 24


def test_the_committed_files_are_what_the_code_writes() -> None:
    """After a change: `python -m deploy.grafana.generate`."""
    assert {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()} == files()


def test_the_command_writes_them_and_takes_away_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.grafana.generate.FOLDER", tmp_path)
    (tmp_path / "given-up.json").write_text("{}")
    main()
    assert {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()} == files()


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_comes_back_from_the_sdk_as_it_went(name: str) -> None:
    """A key that the SDK's schema does not know, or a value in the wrong place, would be lost on the way."""
    board = BOARDS[name]
    again = json.loads(json.dumps(Dashboard.from_json(board), default=lambda part: part.to_json()))
    for link in again["links"]:
        del link["placement"]
    assert again == board


@pytest.mark.parametrize("name", BOARDS)
def test_what_dashboards_have_in_common(name: str) -> None:
    board = BOARDS[name]
    assert board["uid"] == f"palimpsest-{name}", "links and bookmarks go by it"
    assert board["tags"] == [BOARD_TAG]
    assert board["description"]
    assert board["refresh"]
    assert board["time"]["to"] == "now"
    assert [variable["name"] for variable in board["templating"]["list"]] == [
        "datasource",
        "stream",
        "branch",
        "instance",
    ]
    assert all(variable["description"] and variable["label"] for variable in board["templating"]["list"])
    (link,) = board["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
        "dashboards",
        [BOARD_TAG],
        True,
        True,
    )


@pytest.mark.parametrize("name", BOARDS)
def test_panels_are_numbered_once_and_none_lies_on_another(name: str) -> None:
    board = BOARDS[name]
    assert [panel["id"] for panel in board["panels"]] == list(range(1, len(board["panels"]) + 1))
    assert max(Counter(panel["title"] for panel in panels(board)).values()) <= 2, "a figure, and its curve"
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= GRID_COLUMNS, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 15
    assert panel["description"].endswith("."), panel["title"]
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"] in UNITS
    assert defaults["noValue"], "an empty panel says so"
    assert panel["datasource"] == VARIABLE
    assert panel["targets"]
    assert [target["refId"] for target in panel["targets"]] == [chr(ord("A") + n) for n in range(len(panel["targets"]))]
    for target in panel["targets"]:
        assert target["datasource"] == VARIABLE
        selectors = METRIC.findall(target["expr"])
        assert target["expr"].count('{instance=~"$instance"') == len(selectors), "each metric, of the chosen processes"
        assert target["instant"] == (panel["type"] in {"stat", "bargauge", "table"}), "figures are of now"
        if panel["type"] in {"timeseries", "status-history"}:
            assert target["legendFormat"], "no series is called by all of its labels"
    if defaults["unit"] == units.RATIO and panel["type"] != "table":
        assert defaults["min"] in (-1, 0) or panel["title"].startswith("Share of the time"), panel["title"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_legend_names_labels_that_its_expression_keeps(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        named = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
        kept = {
            label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for label in labels.split(",")
        }
        assert named <= kept, target["expr"]


def test_every_metric_asked_for_is_one_that_a_process_shows(tmp_path: Path) -> None:
    asked = {name for one in all_asked() for name in METRIC.findall(one.expr)}
    variables = json.dumps([board["templating"] for board in BOARDS.values()])
    asked |= set(re.findall(r"palimpsest_\w+", variables))
    unknown = asked - _shown_metrics(tmp_path) - METRICS_OF_OTHERS
    assert unknown == set()
    assert asked >= METRICS_OF_OTHERS, "what is not asked for need not be excused"


def test_promtool_can_read_every_expression(tmp_path: Path) -> None:
    promtool = require_program("promtool", package="prometheus")
    values = {"instance": ".+", "__rate_interval": "1m", "__interval": "15s"}
    rules = [
        {"record": f"asked:number:{number}", "expr": one.filled_in(values)} for number, one in enumerate(all_asked())
    ]
    file = tmp_path / "asked.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}), encoding="utf-8")
    checked = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"SUCCESS: {len(rules)} rules found" in checked.stdout


def test_the_files_that_provision_grafana_name_what_there_is() -> None:
    folder = FOLDER.parent / "provisioning"
    dashboards = yaml.safe_load((folder / "dashboards/palimpsest.yaml").read_text(encoding="utf-8"))
    (provider,) = dashboards["providers"]
    assert provider["type"] == "file"
    assert not provider["allowUiUpdates"]
    datasources = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text(encoding="utf-8"))
    (source,) = datasources["datasources"]
    assert source["type"] == VARIABLE["type"]
    assert source["isDefault"]
    assert dashboards["apiVersion"] == datasources["apiVersion"] == 1


def _shown_metrics(folder: Path) -> set[str]:
    """Names of series: of a histogram, its parts."""
    registries = [
        LearnerMetrics(MetricsSettings(), stream="digits", branch="main").registry,
        PredictorMetrics(
            stream="digits", role="champion", instance="one", looked=folder / "looked", stale_after_seconds=60
        ).registry,
        WorkerMetrics(stream="digits", stale_after_seconds=60).registry,
    ]
    shadow = CollectorRegistry()
    shadow.register(ShadowMetrics(max_class_labels=50))
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        family.name + ending
        for registry in [*registries, shadow]
        for family in registry.collect()
        for ending in endings.get(family.type, ("",))
    }
