"""What a panel asks Prometheus for, and in which form it wants the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

from deploy.grafana.variables import DATASOURCE


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and what its series are called: `{{label}}` becomes the label's value."""

    expr: str
    legend: str = ""


def over_time(queries: Sequence[Query]) -> list[Dataquery]:
    """A curve each."""
    return [_asked(query, place).range().format(PromQueryFormat.TIME_SERIES) for place, query in enumerate(queries)]


def of_now(query: Query) -> Dataquery:
    """The values of this moment."""
    return _asked(query, 0).instant().format(PromQueryFormat.TIME_SERIES)


def as_table(queries: Sequence[Query]) -> list[Dataquery]:
    """The values of this moment, with labels as columns."""
    return [_asked(query, place).instant().format(PromQueryFormat.TABLE) for place, query in enumerate(queries)]


def _asked(query: Query, place: int) -> Dataquery:
    asked = Dataquery().datasource(DATASOURCE).expr(query.expr).ref_id(ref_id(place)).editor_mode(QueryEditorMode.CODE)
    return asked.legend_format(query.legend) if query.legend else asked


def ref_id(place: int) -> str:
    """By which a panel tells its queries apart: A, B, ..."""
    return chr(ord("A") + place)
