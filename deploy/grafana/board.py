"""What the three dashboards have in common: time, variables, annotations, links between them, and numbered panels.

They are in Grafana's classic form: every Grafana reads files of it, and the newer ones migrate them; the form that the
SDK prefers is for the newest alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import bargauge, stat, statushistory, table, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink, Row
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.events import shared_annotations
from deploy.grafana.variables import shared_variables

BOARD_TAG = "palimpsest"

AnyPanel = bargauge.Panel | stat.Panel | statushistory.Panel | table.Panel | timeseries.Panel


@dataclass(frozen=True, slots=True)
class Section:
    """A row's title, and the panels below it, laid from left to right in lines of 24 columns."""

    title: str
    panels: Sequence[AnyPanel]


def board(*, uid: str, title: str, description: str, since: str, sections: Sequence[Section]) -> models.Dashboard:
    """A dashboard that shows the time from `since` (such as now-6h) on. `uid` is its address: it must never change."""
    built = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([BOARD_TAG])
        .timezone("browser")
        .time(since, "now")
        .refresh("30s")
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .variables(list(shared_variables()))
        .annotations(list(shared_annotations()))
        .link(
            DashboardLink("Palimpsest")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([BOARD_TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
    )
    for section in sections:
        built.with_row(Row(section.title))
        for panel in section.panels:
            built.with_panel(panel)
    dashboard = built.build()
    for number, placed in enumerate(dashboard.panels or (), start=1):
        placed.id_val = number
    return dashboard
