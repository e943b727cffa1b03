from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.r_matrix import RMatrix
from pipeline.user_error import UserError
from tests.system_package import require_module

R = np.array([[0.9, 0.3, 0.2], [0.6, 0.8, 0.1], [0.5, 0.6, 1.0]])
B = np.array([0.1, 0.2, 0.15])


def test_three_tasks_worked_out_by_hand() -> None:
    """ACC = (0.5 + 0.6 + 1.0) / 3; BWT = ((0.5 - 0.9) + (0.6 - 0.8)) / 2; FWT = ((0.3 - 0.2) + (0.1 - 0.15)) / 2."""
    matrix = RMatrix(R, B)
    assert matrix.tasks == 3
    assert matrix.accuracy == pytest.approx(0.7)
    assert matrix.backward_transfer == pytest.approx(-0.3)
    assert matrix.forward_transfer == pytest.approx(0.025)


def test_one_task_has_no_transfer() -> None:
    matrix = RMatrix(np.array([[0.5]]), np.array([0.1]))
    assert (matrix.accuracy, matrix.backward_transfer, matrix.forward_transfer) == (0.5, None, None)


@pytest.mark.parametrize(
    ("r", "b"),
    [
        (np.zeros((2, 3)), np.zeros(2)),
        (np.zeros((2, 2)), np.zeros(3)),
        (np.zeros((0, 0)), np.zeros(0)),
        (np.zeros(2), np.zeros(2)),
        (np.array(0.5), np.array(0.5)),
    ],
)
def test_wrong_shapes_are_named(r: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"R has shape .*; for T tasks give R \(T, T\) and b \(T,\)"):
        RMatrix(r, b)


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_what_is_no_accuracy_is_named(value: float) -> None:
    with pytest.raises(UserError, match=f"b holds {value}; accuracies lie in 0 to 1"):
        RMatrix(R, np.array([0.1, value, 0.1]))


@pytest.mark.filterwarnings("ignore")  # what Avalanche's own imports warn of is not ours
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_avalanche_agrees(seed: int) -> None:
    """Avalanche's standalone metrics give one value per task, BWT = -forgetting; the paper's number is their mean.

    Its forgetting is the value right after training minus the last one. Forgetting without tasks takes the best one.
    """
    metrics = require_module("avalanche.evaluation.metrics", extra="avalanche")
    rng = np.random.default_rng(seed)
    tasks = 5
    matrix = RMatrix(rng.random((tasks, tasks)), rng.random(tasks))
    backward, forgetting, forward = metrics.BWT(), metrics.Forgetting(), metrics.ForwardTransfer()
    for task in range(tasks):
        forward.update(task, matrix.b[task], initial=True)
    for trained in range(tasks):
        for task in range(tasks):
            accuracy = matrix.R[trained, task]
            if task == trained:
                backward.update(task, accuracy, initial=True)
                forgetting.update(task, accuracy, initial=True)
            elif task < trained:
                backward.update(task, accuracy)
                forgetting.update(task, accuracy)
            elif task == trained + 1:
                forward.update(task, accuracy)
    assert set(backward.result()) == set(range(tasks - 1))
    assert np.mean(list(backward.result().values())) == pytest.approx(matrix.backward_transfer)
    assert -np.mean(list(forgetting.result().values())) == pytest.approx(matrix.backward_transfer)
    assert set(forward.result()) == set(range(1, tasks))
    assert np.mean(list(forward.result().values())) == pytest.approx(matrix.forward_transfer)
