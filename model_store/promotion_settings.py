"""Settings of the gate: what a challenger may be worse at than the champion, and by how much."""

from __future__ import annotations

from pipeline.settings_section import Section, changeable


class PromotionSettings(Section):
    """Accuracies, forgetting and calibration error are 0 to 1, and so are what they may differ by."""

    average_accuracy_margin: float = changeable(0.01, ge=0, le=1, why="the average accuracy may fall by so much")
    worst_class_margin: float = changeable(
        0.05, ge=0, le=1, why="the lowest accuracy of a class may fall by so much, whichever class it is then"
    )
    forgetting_margin: float = changeable(0.02, ge=0, le=1, why="the average forgetting may rise by so much")
    calibration_margin: float = changeable(0.02, ge=0, le=1, why="the expected calibration error may rise by so much")
    latency_ratio: float = changeable(2.0, gt=0, why="one prediction may take so many times as long, at most")
    latency_free_seconds: float = changeable(
        0.001, ge=0, why="what one prediction may take in any case: of so small networks the ratio is noise"
    )
    size_ratio: float = changeable(2.0, gt=0, why="the network may have so many times the parameters, at most")
    min_class_samples: int = changeable(20, ge=1, why="classes with fewer held-out samples are not judged")
    min_shadow_labels: int = changeable(
        100, ge=1, why="fewer labelled answers in the shadow's record are shown, and say nothing"
    )
    shadow_accuracy_margin: float = changeable(
        0.01, ge=0, le=1, why="the accuracy in the shadow's record may fall by so much"
    )
    needs_shadow: bool = changeable(
        False, why="true: no promotion without enough labelled answers in the shadow's record"
    )
    automatic: bool = changeable(
        False,
        why="true: `palimpsest restructure` judges each new challenger once, and promotes it where the gate passes",
    )
    look_seconds: float = changeable(30.0, gt=0, why="how often it looks for a new challenger, between two jobs")
