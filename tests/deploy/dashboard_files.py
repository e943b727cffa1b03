"""The committed dashboards as Grafana reads them: their panels, and every expression that they ask Prometheus for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.grafana.generate import FOLDER


@dataclass(frozen=True, slots=True)
class Asked:
    """One expression. `where` says to a person which; `instant`: of one moment, else of a range of time."""

    where: str
    expr: str
    instant: bool

    def filled_in(self, variables: Mapping[str, str]) -> str:
        """As Prometheus gets it. `variables`: name -> value, without the dollar."""
        text = self.expr
        for name in sorted(variables, key=len, reverse=True):
            text = text.replace(f"${name}", variables[name])
        assert "$" not in text, f"{self.where}: a variable has no value: {text}"
        return text


def read_boards() -> dict[str, dict[str, Any]]:
    """File name without .json -> dashboard."""
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))}
    assert found
    return found


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that show something: no rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def all_asked() -> Iterator[Asked]:
    """Of all panels and annotations."""
    for board in read_boards().values():
        for panel in panels(board):
            for target in panel["targets"]:
                yield Asked(
                    f"{board['title']} / {panel['title']} / {target['refId']}", target["expr"], target["instant"]
                )
        for annotation in board["annotations"]["list"]:
            yield Asked(f"{board['title']} / event {annotation['name']}", annotation["target"]["expr"], instant=False)
