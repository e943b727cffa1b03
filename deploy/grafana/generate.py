"""Writes the dashboards as JSON, the files that Grafana is provisioned with: `python -m deploy.grafana.generate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.forgetting_board import forgetting
from deploy.grafana.pipeline_board import pipeline
from deploy.grafana.versions_board import versions

FOLDER = Path(__file__).parent / "dashboards"
BOARDS: tuple[Callable[[], Dashboard], ...] = (forgetting, pipeline, versions)


def files() -> dict[str, str]:
    """File name -> text, of every dashboard. The same bytes for the same code and SDK."""
    return {f"{make.__name__}.json": _text(make()) for make in BOARDS}


def main() -> None:
    """Write them all, and take away those that are none any more."""
    wanted = files()
    for file in FOLDER.glob("*.json"):
        if file.name not in wanted:
            file.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def _text(dashboard: Dashboard) -> str:
    written = json.loads(JSONEncoder().encode(dashboard))
    for link in written["links"]:
        del link["placement"]  # the SDK always says: into a menu. Without it they are in sight
    return json.dumps(written, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
