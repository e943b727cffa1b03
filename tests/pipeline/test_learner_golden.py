"""Golden losses: a refactoring must reproduce them.

60 updates on scikit-learn's digits, two classes at a time, with all that shapes an update switched on: two terms, a
growing head, momentum, clipping, augmentation, an announced drift. To write the file anew after a change that is meant
to change them (say so in the change log):

    python -m tests.pipeline.test_learner_golden
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.learner import Learner
from pipeline.sample import InputSpec
from pipeline.settings import LearnerSettings

GOLDEN = Path(__file__).parent / "golden" / "digits.json"
UPDATES = 60
ROWS = 10
EVERY = 5  # updates between two that are written down


def losses() -> list[dict[str, float]]:
    """The losses of every fifth update."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[:, None]  # 0..16 to bytes, (1797, 1, 8, 8)
    task = digits.target // 2
    order = np.concatenate([np.flatnonzero(task == number)[: UPDATES * ROWS // 5] for number in range(5)])
    settings = LearnerSettings.model_validate(
        {
            "device": "cpu",
            "seed": 7,
            "network": {"options": {"hidden": [32, 32]}, "initial_columns": 3},
            "optimizer": {"learning_rate": 0.2, "momentum": 0.5, "weight_decay": 1e-4, "max_gradient_norm": 10.0},
            "replay": {"capacity": 60, "draw_size": 24},
            "retention": {"der_pp": {}, "ewc_pp": {"strength": 10.0}},
            "augmentation": {"crop_padding": 1},
        }
    )
    learner = Learner(settings, InputSpec(kind="image", shape=(1, 8, 8)))
    written: list[dict[str, float]] = []
    for number in range(UPDATES):
        rows = order[number * ROWS : (number + 1) * ROWS]
        labels = [str(label) for label in digits.target[rows]]
        report = learner.update(images[rows], labels, drift=number == 40)
        if report.number % EVERY == 0:
            written.append({name: loss.item() for name, loss in report.loss.items()})
    held_out = np.setdiff1d(np.arange(len(images)), order)
    predicted = [learner.class_names[column] for column in learner.predict_columns(images[held_out])]
    accuracy = float(
        np.mean([name == str(label) for name, label in zip(predicted, digits.target[held_out], strict=True)])
    )
    written.append({"accuracy on what was not learnt": accuracy})
    return written


def test_the_losses_are_as_they_were() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = losses()
    finally:
        torch.set_num_threads(threads)
    expected: list[dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    *found_losses, found_accuracy = found
    *expected_losses, expected_accuracy = expected
    assert len(found_losses) == UPDATES // EVERY
    for position, (ours, golden) in enumerate(zip(found_losses, expected_losses, strict=True)):
        assert ours == pytest.approx(golden, rel=1e-5), f"update {(position + 1) * EVERY}"
    assert found_accuracy == pytest.approx(expected_accuracy, abs=0.01)  # one image more or less is a rounding


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.write_text(json.dumps(losses(), indent=1) + "\n", encoding="utf-8")
