"""The colours that values have, and where each begins."""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models.dashboard import Threshold, ThresholdsMode

Colours = Sequence[tuple[float | None, str]]  # from which value on; the first is of everything below the second

# ColorBrewer's red-yellow-blue, which those who cannot tell red from green can read.
ACCURACY: Colours = (
    (None, "#a50026"),
    (0.2, "#d73027"),
    (0.4, "#f46d43"),
    (0.6, "#fdae61"),
    (0.8, "#fee090"),
    (0.9, "#abd9e9"),
    (0.95, "#4575b4"),
)
DIFFERENCE: Colours = ((None, "#a50026"), (-0.1, "#f46d43"), (-0.02, "#bdbdbd"), (0.02, "#abd9e9"), (0.1, "#4575b4"))
NEUTRAL: Colours = ((None, "blue"),)


def worse_from(warning: float, bad: float) -> Colours:
    """Green, and from these values on orange and red."""
    return ((None, "green"), (warning, "orange"), (bad, "red"))


def better_from(fair: float, good: float) -> Colours:
    """Red, and from these values on orange and green."""
    return ((None, "red"), (fair, "orange"), (good, "green"))


def thresholds(colours: Colours) -> ThresholdsConfig:
    """As Grafana has them."""
    return (
        ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=colour) for value, colour in colours])
    )
