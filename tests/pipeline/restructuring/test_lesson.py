"""Every class weighs the same in what a sub-module learns, however many of its rows are there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.restructuring.augmented_views import AugmentedViews
from pipeline.restructuring.labelled_rows import LabelledRows
from pipeline.restructuring.lesson import Lesson
from pipeline.restructuring.training import Training
from pipeline.sample import InputSpec
from pipeline.settings import AugmentationSettings

CPU = torch.device("cpu")
SPEC = InputSpec(kind="vector", shape=(2,))


def rows(**counts: int) -> LabelledRows:
    labels = tuple(name for name, count in counts.items() for _ in range(count))
    return LabelledRows(x=np.arange(2 * len(labels), dtype=np.float32).reshape(-1, 2), labels=labels)


@pytest.mark.parametrize("stored", [rows(a=7, b=2), rows(a=0)], ids=["old classes", "none"])
def test_over_an_epoch_each_class_has_the_same_weight(stored: LabelledRows) -> None:
    names = ("a", "b", "c", "d") if len(stored) else ("c", "d")
    records = rows(c=60, d=4)
    lesson = Lesson(names, records, stored, records.x[:0], CPU)
    training = Training(
        torch.nn.Linear(2, 1),
        rows=len(records),
        epochs=200,
        batch_size=16,
        learning_rate=0.0,
        weight_decay=0.0,
        seed=0,
        purpose="test",
    )
    views = AugmentedViews(AugmentationSettings(), SPEC, seed=0, purpose="test", device=CPU)
    total = torch.zeros(len(names))
    while not training.is_done:
        batch = lesson.batch(training, views)
        total.index_add_(0, batch.y, batch.weight)
        training.step(torch.zeros((), requires_grad=True) * 0)
    share = total / total.sum()
    torch.testing.assert_close(share, torch.full_like(share, 1 / len(names)), rtol=0.02, atol=0)
    assert float(total.sum()) == pytest.approx(training.steps, rel=1e-4)
