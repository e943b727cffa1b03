"""The settings of a consolidation. They may differ from job to job: what a job made is recorded, never made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.restructuring.distillation import Distillation
from pipeline.restructuring.refused import Refused
from pipeline.settings_section import Section, changeable

Hears = Literal["new", "outliers"]
Replays = Literal["reservoir", "records"]
GateLearnsFrom = Literal["auto", "rows", "features"]
Initialisation = Literal["parent", "old_teacher", "fresh"]

PLAIN_DMC: Mapping[str, Any] = {
    "distillation": "dmc",
    "specialist_hears": "new",
    "calibrated": False,
    "gated": False,
    "replay_weight": 0.0,
    "parent_weight": 0.0,
    "initialisation": "old_teacher",
}


class ConsolidationSettings(Section):
    """The defaults are the best of a trial on Split-MNIST, the gate for texts that of one on headlines. `PLAIN_DMC` is
    the paper's method."""

    epochs: int = changeable(10, ge=1, why="passes of the student over the unlabelled rows")
    batch_size: int = changeable(64, ge=1, why="rows of one step, of the student and of the specialist")
    learning_rate: float = changeable(1e-3, gt=0, why="largest step size of AdamW; texts want 3e-4")
    weight_decay: float = changeable(0.01, ge=0, why="decoupled weight decay")
    specialist_epochs: int = changeable(10, ge=1, why="passes of the specialist over the new classes' records")
    specialist_learning_rate: float | None = changeable(None, gt=0, why="none: as the student's")
    specialist_initialisation: Initialisation = changeable(
        "fresh", why="old_teacher: its body begins where the old teacher's stands"
    )
    initialisation: Initialisation = changeable(
        "parent",
        why="what the student begins as; parent: the network that the learner has, where there is one of the student's "
        "architecture, else the old teacher",
    )
    parent_weight: float = changeable(
        0.5,
        ge=0,
        le=1,
        why="share of the learner's own network, which knows old classes and new from replay, in what the student is "
        "taught; 0: the two teachers alone",
    )
    distillation: Distillation = changeable(
        "dmc",
        why="dmc: squared error to the centred logits; temperature instead of it; hints, attention or relational "
        "beside it",
    )
    temperature: float = changeable(2.0, gt=0, why="T of distillation temperature")
    beside_weight: float = changeable(1.0, ge=0, why="weight of hints, attention or relational beside the dmc loss")
    specialist_hears: Hears = changeable(
        "new",
        why="new: the new classes' records alone, as in the paper; outliers: the reservoir's old samples too, of which "
        "it is to say nothing",
    )
    outlier_weight: float = changeable(0.5, ge=0, why="weight of the outliers' loss beside the records'")
    calibrated: bool = changeable(
        True, why="each teacher gets a scale, and one of them a shift, fitted on the reservoir; a gate is always fitted"
    )
    gated: bool = changeable(
        True,
        why="a gate learns from records and unlabelled rows what is of the new classes, and the teachers are not "
        "heard on that",
    )
    gate_learns_from: GateLearnsFrom = changeable(
        "auto",
        why="rows: a network of its own; features: a logistic regression on what both teachers make of a row, which "
        "takes seconds; auto: features for texts, whose encoders learn few records by heart, else rows",
    )
    gate_epochs: int = changeable(
        30, ge=1, why="passes of the gate's network over the records or the unlabelled rows, whichever are fewer"
    )
    gate_decay: float = changeable(0.01, ge=0, why="of the squared weights of a gate that learns from features")
    replay_weight: float = changeable(
        1.0, ge=0, why="weight of the cross-entropy on samples of the reservoir while the student is distilled"
    )
    replays: Replays = changeable(
        "reservoir",
        why="records: of the new classes their records instead, each class as often as any other",
    )
    min_unlabelled: int = changeable(500, ge=1, why="a job with fewer unlabelled rows is refused")
    most_unlabelled: int = changeable(50_000, ge=1, why="of more rows so many are kept, each as likely")
    most_records: int = changeable(
        50_000, ge=1, why="of more records of the new classes so many are kept, of the rarer classes all"
    )


def for_ready_teachers(settings: ConsolidationSettings) -> tuple[ConsolidationSettings, tuple[str, ...]]:
    """(the settings, what is off in them) for two teachers that are ready: no record of their classes is there, and no
    learner's own network.

    What needs records and nobody has asked for is as in `PLAIN_DMC`; what somebody has asked for stays, and is refused.
    `Refused` where the learner's network is to be heard.
    """
    if "parent_weight" in settings.model_fields_set and settings.parent_weight:
        raise Refused(
            "two ready teachers come without a learner whose own network could be heard: leave out parent_weight"
        )
    off = {
        name: value
        for name, value in PLAIN_DMC.items()
        if name not in settings.model_fields_set and getattr(settings, name) != value
    }
    needs_records = tuple(name for name in off if name not in ("parent_weight", "initialisation"))
    return settings.model_copy(update=off), needs_records
