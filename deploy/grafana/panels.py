"""The kinds of panels: how each looks, and what it shows where nothing is known."""

from __future__ import annotations

from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, stat, statushistory, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    ScaleDistributionConfig,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import FieldColor
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BarGaugeValueMode,
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import FieldColorModeId

from deploy.grafana.colours import NEUTRAL, Colours, thresholds
from deploy.grafana.queries import Query, of_now, over_time
from deploy.grafana.variables import DATASOURCE

NOTHING = "nothing yet"
# More columns than pixels, and the class history refuses to draw. More rows than class labels (50, by
# metrics.max_class_labels, and `other`) come to it only where somebody raised that; the rest is on its next page.
_MOST_COLUMNS = 160
_MOST_ROWS = 51

Bounds = tuple[float | None, float | None]  # of an axis; None: as the values have it
FROM_0: Bounds = (0, None)
SHARE: Bounds = (0, 1)
DIFFERENCE_OF_SHARES: Bounds = (-1, 1)
FREE: Bounds = (None, None)

_Panel = TypeVar("_Panel", bargauge.Panel, stat.Panel, statushistory.Panel, timeseries.Panel)


def figure(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    colours: Colours = NEUTRAL,
    text: BigValueTextMode = BigValueTextMode.VALUE,
    between: Bounds = FROM_0,
    decimals: int | None = None,
) -> stat.Panel:
    """One large figure of this moment: not the last one known, which a process that died would leave standing.

    `text`: with what it belongs to, such as a class, or that alone.
    """
    panel = (
        _begun(stat.Panel(), title, description, unit, between, 3, 4)
        .thresholds(thresholds(colours))
        .color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE)
        .text_mode(text)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(of_now(query))
    )
    return panel if decimals is None else panel.decimals(decimals)


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 12,
    height: int = 8,
    between: Bounds = FROM_0,
    colours: Colours | None = None,
    stacked: bool = False,
    steps: bool = False,
    logarithmic: bool = False,
    bars: bool = False,
) -> timeseries.Panel:
    """Curves over time; where there is no value, there is a gap.

    `colours`: a dashed line where each begins. `steps`: a value holds until the next. `bars`: what each interval
    brought.
    """
    panel = (
        _begun(timeseries.Panel(), title, description, unit, between, width, height)
        .color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .line_width(1)
        .fill_opacity(70 if bars else 25 if stacked else 0)
        .show_points(VisibilityMode.AUTO)
        .span_nulls(False)
        .legend(
            VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.RIGHT)
            .calcs(["sum"] if bars else ["lastNotNull", "max"])
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .targets(list(over_time(queries)))
    )
    if bars:
        panel.draw_style(GraphDrawStyle.BARS).interval("1m")  # narrower ones nobody sees
    if stacked or bars:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if steps:
        panel.line_interpolation(LineInterpolation.STEP_AFTER)
    if logarithmic:
        panel.scale_distribution(ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    if colours is not None:
        panel.thresholds(thresholds(colours))
        panel.thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    return panel


def history(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    colours: Colours,
    between: Bounds,
    height: int,
) -> statushistory.Panel:
    """A row a series, a column a moment, coloured by the value: the picture of many classes over time.

    Grafana's panel "Heatmap" is for counts in buckets: it hides cells of 0, which are what matters most here, and
    turns its palettes round by version and theme. This one leaves out only what is not there, and its colours are ours.
    """
    return (
        _begun(statushistory.Panel(), title, description, unit, between, 24, height)
        .decimals(0)
        .thresholds(thresholds(colours))
        .color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .fill_opacity(100)
        .line_width(0)
        .row_height(0.95)
        .col_width(1)
        .show_value(VisibilityMode.NEVER)
        .per_page(_MOST_ROWS)
        .max_data_points(_MOST_COLUMNS)
        .legend(
            VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .calcs([])
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.SINGLE).sort(SortOrder.NONE))
        .targets(list(over_time([query])))
    )


def ranking(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    colours: Colours = NEUTRAL,
    between: Bounds = FROM_0,
    width: int = 12,
    height: int = 9,
) -> bargauge.Panel:
    """A bar a series, of this moment."""
    return (
        _begun(bargauge.Panel(), title, description, unit, between, width, height)
        .thresholds(thresholds(colours))
        .color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .display_mode(BarGaugeDisplayMode.BASIC)
        .value_mode(BarGaugeValueMode.TEXT)
        .orientation(VizOrientation.HORIZONTAL)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(of_now(query))
    )


def _begun(panel: _Panel, title: str, description: str, unit: str, between: Bounds, width: int, height: int) -> _Panel:
    least, most = between
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    return (
        panel.title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .no_value(NOTHING)
        .span(width)
        .height(height)
    )
