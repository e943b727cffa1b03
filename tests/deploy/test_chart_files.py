"""The chart's rules and dashboards are those of deploy/prometheus and deploy/grafana: Helm reads only a chart's files.

`python -m tests.deploy.test_chart_files` copies them anew.
"""

from __future__ import annotations

import shutil
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = DEPLOY / "helm" / "palimpsest" / "files"
COPIES = {
    FILES / "rules": sorted((DEPLOY / "prometheus" / "rules").glob("*.yml")),
    FILES / "dashboards": sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")),
}


def test_the_copies_are_fresh() -> None:
    for folder, originals in COPIES.items():
        assert originals
        is_there = {path.name: path.read_bytes() for path in folder.iterdir()}
        expected = {path.name: path.read_bytes() for path in originals}
        assert is_there == expected, "renew them with `python -m tests.deploy.test_chart_files`"


if __name__ == "__main__":
    for folder, originals in COPIES.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for original in originals:
            shutil.copyfile(original, folder / original.name)
