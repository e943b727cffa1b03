"""The R matrix of a benchmark with tasks, and the three numbers of its table.

Lopez-Paz and Ranzato 2017, "Gradient episodic memory for continual learning", arXiv:1706.08840:

    R[i, j] = test accuracy on task j after the last record of task i;  b[j] = the same of the untrained network

    ACC =    1    * sum over i = 1 .. T   of R[T, i]                (2)
             T
    BWT =    1    * sum over i = 1 .. T-1 of R[T, i] - R[i, i]      (3)
           T - 1
    FWT =    1    * sum over i = 2 .. T   of R[i-1, i] - b[i]       (4)
           T - 1

The learner never hears of tasks; only who evaluates it afterwards does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.user_error import UserError


@dataclass(frozen=True, eq=False)
class RMatrix:
    """T = tasks. R (T, T) and b (T,), float64, every entry between 0 and 1."""

    R: npt.NDArray[np.float64]
    b: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        tasks = self.R.shape[0] if self.R.ndim else 0
        if tasks == 0 or self.R.shape != (tasks, tasks) or self.b.shape != (tasks,):
            raise UserError(
                f"R has shape {self.R.shape} and b {self.b.shape}; for T tasks give R (T, T) and b (T,), T at least 1"
            )
        for name, values in (("R", self.R), ("b", self.b)):
            if not np.all((values >= 0) & (values <= 1)):  # NaN fails, too
                raise UserError(f"{name} holds {values[~((values >= 0) & (values <= 1))][0]}; accuracies lie in 0 to 1")

    @property
    def tasks(self) -> int:
        return len(self.b)

    @property
    def accuracy(self) -> float:
        """ACC, equation 2."""
        return float(self.R[-1].mean())

    @property
    def backward_transfer(self) -> float | None:
        """BWT, equation 3: negative where old tasks were forgotten. None with one task."""
        if self.tasks == 1:
            return None
        return float((self.R[-1] - self.R.diagonal())[:-1].mean())

    @property
    def forward_transfer(self) -> float | None:
        """FWT, equation 4: how much a task gains before its first record. None with one task."""
        if self.tasks == 1:
            return None
        return float((self.R.diagonal(offset=1) - self.b[1:]).mean())
