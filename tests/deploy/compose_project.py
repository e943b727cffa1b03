"""deploy/compose.yaml as Compose itself understands it: its own parser checks, fills in and merges."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from tests.system_package import require_go_program

DEPLOY = Path(__file__).parents[2] / "deploy"
PASSWORDS = {"POSTGRES_PASSWORD": "hush", "GRAFANA_ADMIN_PASSWORD": "hush"}


def example_variables() -> dict[str, str]:
    """What .env.example sets."""
    lines = (DEPLOY / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def parse(*files: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What Compose makes of these files of deploy/, as JSON, or why not."""
    paths = [str(DEPLOY / file) for file in files]
    return subprocess.run(
        [require_go_program("compose-model"), *paths], capture_output=True, text=True, env=variables, check=False
    )


@cache
def project(*files: str, example: bool = True) -> dict[str, Any]:
    """With the variables of .env.example, or with the passwords alone."""
    answer = parse(*(files or ("compose.yaml",)), variables={**(example_variables() if example else {}), **PASSWORDS})
    assert answer.returncode == 0, answer.stderr
    whole: dict[str, Any] = json.loads(answer.stdout)
    return whole


def services() -> dict[str, Any]:
    found: dict[str, Any] = project()["services"]
    return found


def seconds(duration: str) -> float:
    """Of Go's way to write a duration: 1m30s."""
    units = {"h": 3600, "m": 60, "s": 1}
    total, number = 0.0, ""
    for character in duration:
        if character in units:
            total, number = total + float(number) * units[character], ""
        else:
            number += character
    return total
