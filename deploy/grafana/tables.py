"""Panels that are tables: labels and values of this moment, one line of them for what belongs together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.builders.common import TableSortByFieldState
from grafana_foundation_sdk.models.common import TableColoredBackgroundCellOptions
from grafana_foundation_sdk.models.dashboard import DataTransformerConfig, DynamicConfigValue

from deploy.grafana.colours import Colours, thresholds
from deploy.grafana.panels import NOTHING
from deploy.grafana.queries import Query, as_table, ref_id
from deploy.grafana.units import NUMBER
from deploy.grafana.variables import DATASOURCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The values of one expression. Without a title they are not shown, and only their labels are."""

    query: Query
    title: str | None
    unit: str = NUMBER
    colours: Colours | None = None


def joined(
    title: str,
    description: str,
    labels: Mapping[str, str],
    columns: Sequence[Column],
    *,
    sorted_by: str,
    width: int = 12,
    height: int = 9,
) -> table.Panel:
    """A line for each combination of labels. `labels`: label -> its title, in the order of the columns; the values of
    `columns` come after them. Labels that are not named must not be in the answers."""
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(NUMBER)
        .no_value(NOTHING)
        .filterable(True)
        .targets(list(as_table([column.query for column in columns])))
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(DataTransformerConfig(id_val="organize", options=_arrangement(labels, columns)))
        .sort_by([TableSortByFieldState().display_name(sorted_by).desc(False)])
        .span(width)
        .height(height)
    )
    for column in columns:
        if column.title is not None:
            panel.override_by_name(column.title, _looks(column))
    return panel


def _arrangement(labels: Mapping[str, str], columns: Sequence[Column]) -> dict[str, object]:
    values = [_value_of(columns, place) for place in range(len(columns))]
    order = [*labels, *values]
    titles = dict(zip(values, (column.title for column in columns), strict=True))
    return {
        "excludeByName": {"Time": True, **{name: True for name, title in titles.items() if title is None}},
        "indexByName": {name: place for place, name in enumerate(order)},
        "renameByName": {**labels, **{name: title for name, title in titles.items() if title is not None}},
    }


def _value_of(columns: Sequence[Column], place: int) -> str:
    """What Grafana calls the field: by the query where there are several."""
    return "Value" if len(columns) == 1 else f"Value #{ref_id(place)}"


def _looks(column: Column) -> list[DynamicConfigValue]:
    looks = [DynamicConfigValue(id_val="unit", value=column.unit)]
    if column.colours is not None:
        looks.append(DynamicConfigValue(id_val="thresholds", value=thresholds(column.colours).build()))
        looks.append(DynamicConfigValue(id_val="custom.cellOptions", value=TableColoredBackgroundCellOptions()))
    return looks
