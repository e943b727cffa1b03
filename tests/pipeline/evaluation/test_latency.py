"""Latency: medians, in turns, by a clock of the test's own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.latency import latencies_seconds


class Machine:
    """Time passes only while something predicts."""

    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[tuple[str, float]] = []

    def clock(self) -> float:
        return self.now

    def predictor(self, name: str, seconds: list[float]) -> object:
        def predict(row: npt.NDArray[np.generic]) -> None:
            assert row.shape == (1, 2)
            self.now += seconds[min(len([who for who, _ in self.said if who == name]), len(seconds) - 1)]
            self.said.append((name, float(row[0, 0])))

        return predict


def test_medians_without_the_warm_up() -> None:
    """Five slow calls first, which do not count; of 1, 5 and 2 the median is 2."""
    machine = Machine()
    one = machine.predictor("one", [9.0] * 5 + [1.0, 5.0, 2.0])
    two = machine.predictor("two", [0.5])
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    found = latencies_seconds([one, two], rows, times=3, clock=machine.clock)  # type: ignore[list-item]
    assert found == [2.0, 0.5]
    assert [who for who, _ in machine.said] == [
        *("two", "one", "one", "two", "two", "one", "one", "two", "two", "one"),
        *("one", "two", "two", "one", "one", "two"),
    ], "in turns, and each is first as often as the other"
    rows_of_one = [row for who, row in machine.said if who == "one"]
    assert rows_of_one == [row for who, row in machine.said if who == "two"], "of the same rows"


def test_one_alone() -> None:
    machine = Machine()
    only = machine.predictor("only", [0.25])
    assert latencies_seconds([only], np.zeros((1, 2)), times=3, clock=machine.clock) == [0.25]  # type: ignore[list-item]
