"""Settings of the shadow: how long an answer waits for its true label, and how much is kept meanwhile."""

from __future__ import annotations

from pipeline.evaluation.delayed_labels import DelayedLabels
from pipeline.settings_section import Section, changeable


class ShadowSettings(Section):
    """How champion and challenger are compared on what they answered."""

    predictions: str | None = changeable(None, why="topic of the champion's answers; none: <stream>.predictions")
    answers: str | None = changeable(None, why="topic of the challenger's answers; none: <stream>.shadow")
    horizon_seconds: float = changeable(
        86_400.0, gt=0, why="a true label that comes later than this after an answer scores nothing"
    )
    most_open: int = changeable(
        100_000, ge=1, why="answered requests that wait for their label at once; of more the oldest are given up"
    )
    window: int = changeable(1_000, ge=1, why="newest answers of a version that its recent figures are over")
    look_seconds: float = changeable(
        5.0, gt=0, why="how often it looks for topics and partitions that came, and tries again what failed"
    )

    def new_labels(self) -> DelayedLabels:
        """Nothing told yet."""
        return DelayedLabels(horizon_seconds=self.horizon_seconds, most_open=self.most_open, window=self.window)
