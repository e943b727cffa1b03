"""What is shipped for Prometheus: promtool takes it, each alert fires where it should, and the runbook has them all."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.cli import palimpsest
from tests.deploy.named_commands import commands_in, parses
from tests.system_package import require_program

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RUNBOOK = ROOT / "docs" / "operator" / "alerts.md"
TEST_FILES = sorted((FOLDER / "tests").glob("*.yml"))


def loaded(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in loaded(FOLDER / "rules" / name)["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}


def severities(name: str) -> list[str]:
    """One, or two where it goes by a label."""
    severity = ALERTS[name]["labels"]["severity"]
    return re.findall(r"(?<![\w\"])(?:critical|warning|info)(?!\w)", severity)


def promtool(*arguments: object) -> None:
    program = require_program("promtool", package="prometheus")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted((FOLDER / "rules").glob("*.yml")))


def test_the_configuration_names_every_file_of_rules() -> None:
    named = loaded(FOLDER / "prometheus.yml")["rule_files"]
    assert sorted(named) == sorted(f"rules/{file.name}" for file in (FOLDER / "rules").iterdir())


@pytest.mark.parametrize("file", TEST_FILES, ids=[file.stem for file in TEST_FILES])
def test_alerts_fire_where_they_should_and_nowhere_else(file: Path) -> None:
    promtool("test", "rules", file)


def test_each_alert_is_seen_to_fire_and_not_to() -> None:
    fires: dict[str, set[bool]] = {name: set() for name in ALERTS}
    for file in TEST_FILES:
        for case in loaded(file)["tests"]:
            for check in case["alert_rule_test"]:
                fires[check["alertname"]].add(bool(check["exp_alerts"]))
    assert {name: seen for name, seen in fires.items() if seen != {True, False}} == {}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_is_wrong_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert name.startswith("Palimpsest")
    assert severities(name), alert["labels"]
    assert re.fullmatch(r"\d+[smh]", alert["for"])
    said = alert["annotations"]
    assert said.keys() == {"summary", "description", "action", "runbook_url"}
    assert "$labels.stream" in said["summary"], "which of several streams it is"
    page = '{{ or $externalLabels.palimpsest_runbook "docs/operator/alerts.md" }}'
    assert said["runbook_url"] == f"{page}#{name.lower()}"
    assert RUNBOOK == ROOT / "docs" / "operator" / "alerts.md"


def test_the_link_goes_where_somebody_shows_the_runbook(tmp_path: Path) -> None:
    case = {
        "rule_files": [str(FOLDER / "rules" / name) for name in ("recording.yml", "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "external_labels": {"palimpsest_runbook": "https://wiki.test/alerts"},
                "input_series": [{"series": 'palimpsest_build_info{stream="s", branch="main"}', "values": "1x10 _x30"}],
                "alert_rule_test": [
                    {
                        "eval_time": "35m",
                        "alertname": "PalimpsestLearnerMissing",
                        "exp_alerts": [
                            {
                                "exp_labels": {"stream": "s", "branch": "main", "severity": "critical"},
                                "exp_annotations": {
                                    **rendered("PalimpsestLearnerMissing", stream="s", branch="main"),
                                    "runbook_url": "https://wiki.test/alerts#palimpsestlearnermissing",
                                },
                            }
                        ],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "case.yml"
    file.write_text(yaml.safe_dump(case))
    promtool("test", "rules", file)


def rendered(name: str, **labels: str) -> dict[str, str]:
    """Its annotations, which name no value."""

    def filled(text: str) -> str:
        for label, value in labels.items():
            text = text.replace(f"{{{{ $labels.{label} }}}}", value)
        return text

    return {key: filled(text) for key, text in ALERTS[name]["annotations"].items()}


def sections() -> list[str]:
    return re.findall(r"^### (\S+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_runbook_has_a_section_for_each_alert_and_for_no_other() -> None:
    assert sections() == list(ALERTS), "in the order of the rules"


@pytest.mark.parametrize("name", ALERTS)
def test_a_section_says_all_that_somebody_needs(name: str) -> None:
    text = RUNBOOK.read_text(encoding="utf-8").split(f"### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]
    said = re.findall(r"\*(critical|warning|info)\*", text.split(". ")[0])
    assert sorted(said) == sorted(severities(name)), "as the rule has it"
    assert text.lstrip().startswith(f"*{said[0]}*")
    for part in ("**Look at**", "**Do**", "**Ignore it**"):
        assert part in text


def test_the_runbooks_commands_are_ours() -> None:
    found = commands_in(RUNBOOK.read_text(encoding="utf-8"))
    assert len(found) >= 15
    for line in found:
        parses(palimpsest, line)
