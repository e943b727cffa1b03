"""A golden stream: the default learner on scikit-learn's digits, whose losses hold through every refactoring.

After a change that is meant to change them: `python -m tests.pipeline.test_golden_stream` writes them anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.record import Record
from pipeline.sample import Decoded, Sample
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StreamLearner

GOLDEN = Path(__file__).parent / "golden" / "stream.json"
_CLASSES_PER_STEP = 2
_RECORDS_PER_STEP = 120
_SHOWN = (1, 2, 5, 10, 20, 30, 40)  # updates; a difference in the last bit grows from one to the next


def digits() -> list[Decoded]:
    """Six digits in three steps of two, as the data set orders them."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    order = [
        int(item)
        for step in range(3)
        for item in np.flatnonzero(bunch.target // _CLASSES_PER_STEP == step)[:_RECORDS_PER_STEP]
    ]
    return [
        Decoded(
            Record("digits", 0, offset, b""),
            Sample(x=images[item], kind="image", label=str(bunch.target[item]), source="digits", id=str(item)),
        )
        for offset, item in enumerate(order)
    ]


def play() -> dict[str, Any]:
    learner = StreamLearner(LearnerSettings(device="cpu", threads=1))
    losses: dict[str, dict[str, float]] = {}
    for decoded in digits():
        if learner.add(decoded):
            update = learner.step(learner.assembler.take()).update
            if update is not None and update.number in _SHOWN:
                losses[str(update.number)] = {name: float(loss) for name, loss in update.loss.items()}
    report = learner.evaluate_unrecorded()
    assert report is not None
    return {
        "losses": losses,
        "updates": learner.learner.updates if learner.learner else 0,
        "records": {"trained": learner.records_trained, "held_out": learner.records_held_out},
        "classes": list(learner.class_names),
        "replay": dict(learner.replay_counts()),
        "held_out": {entry.name: entry.n for entry in report.classes},
    }


def test_the_losses_are_the_golden_ones() -> None:
    golden = json.loads(GOLDEN.read_text())
    played = play()
    losses, golden_losses = played.pop("losses"), golden.pop("losses")
    assert played == golden
    assert losses.keys() == golden_losses.keys()
    for number, terms in golden_losses.items():
        # Another CPU adds in another order; 1e-5 of the value, and of a penalty near zero 1e-7.
        assert losses[number] == pytest.approx(terms, rel=1e-5, abs=1e-7), f"update {number}"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(play(), indent=1) + "\n")
