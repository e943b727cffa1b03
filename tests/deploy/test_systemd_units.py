"""deploy/systemd: systemd takes the units, their command lines are some, and restarts go by the exit codes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.exit_codes import FENCED, FOR_A_PERSON, REFUSED
from deploy.settings import Settings
from tests.deploy.command_line_check import parsed
from tests.system_package import require_program

UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))
PROGRAM = "/opt/palimpsest/bin/palimpsest"


def setting(unit: Path, name: str) -> str:
    (value,) = [
        line.partition("=")[2] for line in unit.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}=")
    ]
    return value


def test_there_is_one_for_each_process() -> None:
    assert [parsed_command(unit)[0] for unit in UNITS] == ["learn", "predict", "restructure"]


def parsed_command(unit: Path) -> list[str]:
    program, *arguments = shlex.split(setting(unit, "ExecStart").replace("%i", "digits"))
    assert program == PROGRAM
    parsed(arguments)
    return arguments


def test_systemd_takes_them(tmp_path: Path) -> None:
    program = require_program("systemd-analyze", package="systemd")
    copies = []
    for unit in UNITS:
        copy = tmp_path / unit.name
        text = unit.read_text(encoding="utf-8").replace(PROGRAM, sys.executable)  # it asks whether the program is there
        copy.write_text(text, encoding="utf-8")
        copies.append(str(copy))
    answer = subprocess.run(
        [program, "verify", "--man=no", *copies],
        capture_output=True, text=True, check=False, env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_no_restart_where_none_helps(unit: Path) -> None:
    assert setting(unit, "Restart") == "on-failure"
    command = parsed_command(unit)[0]
    if command == "restructure":
        assert "RestartPreventExitStatus" not in unit.read_text(encoding="utf-8")
        return
    prevented = {int(code) for code in setting(unit, "RestartPreventExitStatus").split()}
    assert prevented == (FOR_A_PERSON if command == "learn" else {FENCED, REFUSED})


def test_a_stop_has_the_time_it_needs() -> None:
    (learner,) = [unit for unit in UNITS if "learner" in unit.name]
    assert float(setting(learner, "TimeoutStopSec")) >= Settings().registry.drain_seconds_at_signal + 60
