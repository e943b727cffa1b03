"""Figures of two versions on the same hold-outs, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.classifier import Classifier
from pipeline.evaluation.hold_out import HoldOut
from pipeline.evaluation.version_figures import VersionFigures, answers, compared_figures
from pipeline.network import build_network
from pipeline.sample import InputSpec, Sample
from pipeline.settings import HoldOutSettings, InputSettings, NetworkSettings

SPEC = InputSpec(kind="vector", shape=(3,))


class Reads(Classifier):
    """Takes a row's three values for the probabilities of the classes "a", "b" and "c", as far as it knows them."""

    def __init__(self, classes: Sequence[str]) -> None:
        network = build_network(NetworkSettings(backbone="mlp", options={"hidden": [2]}, initial_columns=4), SPEC, 0)
        super().__init__(network, classes, SPEC, InputSettings())

    def predict_probabilities(self, x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        columns = ["abc".index(name) for name in self.class_names]
        return np.asarray(x, np.float32)[:, columns]


def hold_out(**rows: list[tuple[float, float, float]]) -> HoldOut:
    """Of each class these rows; everything is held out."""
    kept = HoldOut(HoldOutSettings(share=1.0))
    for label, values in rows.items():
        for number, row in enumerate(values):
            x = np.array(row, np.float32)
            assert kept.add(Sample(x=x, kind="vector", label=label, source="tests", id=f"{label} {number}"))
    return kept


def figures(
    champion: str | None,
    challenger: str,
    held_out: HoldOut | None,
    best: dict[str, float] | None = None,
    least: int = 2,
) -> tuple[VersionFigures | None, VersionFigures]:
    return compared_figures(
        None if champion is None else Reads(champion), Reads(challenger), held_out, best or {}, min_class_samples=least
    )


A = [(0.9, 0.1, 0.0), (0.8, 0.2, 0.0), (0.3, 0.7, 0.0), (0.6, 0.4, 0.0)]  # three of four are right
B = [(0.0, 1.0, 0.0), (0.4, 0.6, 0.0)]
C = [(0.0, 0.0, 1.0), (0.45, 0.35, 0.2)]  # one of two


def test_worked_out_by_hand() -> None:
    """The champion knows a and b, the challenger all three."""
    champion, challenger = figures("ab", "abc", hold_out(a=A, b=B, c=C), {"a": 0.9, "b": 0.8, "c": 1.0})
    assert champion is not None
    assert champion.class_accuracies == {"a": (0.75, 4), "b": (1.0, 2), "c": (0.0, 2)}
    assert champion.average_accuracy == pytest.approx(1.75 / 3), "the class that it does not know has accuracy 0"
    assert (champion.worst_class, champion.worst_accuracy) == ("a", 0.75), "of the classes that it knows"
    assert champion.forgetting == pytest.approx(0.15 / 2), "a: 0.9 - 0.75; b is better than ever; c it never knew"
    assert challenger.class_accuracies == {"a": (0.75, 4), "b": (1.0, 2), "c": (0.5, 2)}
    assert challenger.average_accuracy == pytest.approx(2.25 / 3)
    assert (challenger.worst_class, challenger.worst_accuracy) == ("a", 0.75), "of the champion's classes"
    assert challenger.forgetting == pytest.approx(0.15 / 2)
    # rows of a and b, each in a bin of its own but for 0.6 twice: (0.1 + 0.2 + 0.7 + |1 + 1 - 0.6 - 0.6| + 0) / 6
    assert champion.calibration_error == challenger.calibration_error == pytest.approx(1.8 / 6, abs=1e-6)
    assert champion.parameters == challenger.parameters > 0
    assert champion.latency_seconds > 0


def test_a_class_that_the_challenger_lost_counts_as_0() -> None:
    champion, challenger = figures("abc", "ac", hold_out(a=A, b=B, c=C), {"b": 1.0})
    assert champion is not None
    assert (challenger.worst_class, challenger.worst_accuracy) == ("b", 0.0)
    assert (champion.forgetting, challenger.forgetting) == (0.0, 1.0)
    assert champion.average_accuracy == pytest.approx(2.25 / 3)
    assert challenger.average_accuracy == pytest.approx((1.0 + 0.0 + 0.5) / 3), "without b it takes 0.3 for a"


def test_classes_of_too_few_rows_and_classes_that_nobody_knows_stay_out() -> None:
    held_out = hold_out(a=A, b=B, c=C)
    champion, challenger = figures("ab", "ab", held_out, {"a": 0.75}, least=3)
    assert champion is not None
    assert set(challenger.class_accuracies) == {"a", "b"}
    assert challenger.average_accuracy == challenger.worst_accuracy == 0.75
    assert challenger.forgetting == 0.0
    champion, challenger = figures("ab", "ab", held_out, least=5)
    assert champion is not None
    for of_one in (champion, challenger):
        assert (of_one.average_accuracy, of_one.worst_accuracy, of_one.worst_class) == (None, None, None)
        assert (of_one.forgetting, of_one.calibration_error) == (None, None)


def test_without_a_champion_all_of_its_own_classes() -> None:
    champion, challenger = figures(None, "abc", hold_out(a=A, b=B, c=C), {"c": 0.9})
    assert champion is None
    assert (challenger.worst_class, challenger.worst_accuracy) == ("c", 0.5)
    assert challenger.forgetting == pytest.approx(0.4)


def test_without_hold_outs_latency_and_size_alone() -> None:
    champion, challenger = figures("ab", "abc", None)
    assert champion is not None
    assert challenger.class_accuracies == {}
    assert challenger.average_accuracy is None
    assert challenger.latency_seconds > 0


@pytest.mark.parametrize("kind", ["vector", "image", "text"])
def test_one_that_answers(kind: Any) -> None:
    spec = InputSpec(kind=kind, shape={"vector": (3,), "image": (1, 8, 8), "text": (6,)}[kind])
    backbone = {"vector": "mlp", "image": "mlp", "text": "text_encoder"}[kind]
    network = build_network(NetworkSettings(backbone=backbone, initial_columns=4), spec, 0)
    classifier = Classifier(network, "ab", spec, InputSettings())
    assert answers(classifier)
    with torch.no_grad():
        for parameter in classifier.network.parameters():
            parameter.fill_(torch.nan)
    assert not answers(classifier)
