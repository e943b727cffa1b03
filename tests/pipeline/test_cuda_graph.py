"""When work is recorded and when it is forgotten. That what is recorded computes the same: tests/cuda."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest
import torch

from pipeline import cuda_graph
from pipeline.cuda_graph import RepeatedPasses
from pipeline.passes import Batch, Passes


class GivenWork:
    """Passes whose batches are their own work, on a device that needs not be there."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def work(self, batch: Any) -> Any:
        return batch

    def run(self, batch: Any) -> str:
        return "launched"


class Recorded:
    """Stands in for a graph, which needs a device."""

    made: int = 0

    def __init__(self, _passes: Any, batch: Any) -> None:
        if batch == "waits for the device":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        Recorded.made += 1

    def run(self, _batch: Any) -> str:
        return "recorded"


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_Recorded", Recorded)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    Recorded.made = 0


def repeated(device: str = "cuda:0") -> RepeatedPasses:
    return RepeatedPasses(cast(Passes, GivenWork(device)))


def ran(passes: RepeatedPasses, *works: object) -> list[str]:
    return [cast(str, passes.run(cast(Batch, work))) for work in works]


def test_work_is_recorded_when_it_was_met_five_times() -> None:
    passes = repeated()
    assert ran(passes, *["a"] * 8) == ["launched"] * 5 + ["recorded"] * 3
    assert Recorded.made == 1
    assert passes.is_recorded


def test_two_kinds_of_work_by_turns_have_a_graph_each() -> None:
    passes = repeated()
    assert ran(passes, *["a", "b", "b", "b"] * 5, "a", "b", "a", "b")[-4:] == ["recorded"] * 4
    assert Recorded.made == 2


def test_what_changes_in_each_update_is_never_recorded_and_pushes_out_what_was() -> None:
    passes = repeated()
    ran(passes, *["a"] * 6)
    assert set(ran(passes, *range(20))) == {"launched"}
    assert not passes.is_recorded
    assert ran(passes, "a") == ["launched"]


def test_what_was_forgotten_is_recorded_anew() -> None:
    passes = repeated()
    ran(passes, *["a"] * 6)
    passes.forget()
    assert not passes.is_recorded
    assert ran(passes, *["a"] * 6) == ["launched"] * 5 + ["recorded"]


def test_work_that_no_term_promises_and_other_devices_launch() -> None:
    assert set(ran(repeated(), *[None] * 10)) == {"launched"}
    assert set(ran(repeated("cpu"), *["a"] * 10)) == {"launched"}


def test_what_waits_for_the_device_is_launched_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    passes = repeated()
    with caplog.at_level(logging.WARNING):
        assert set(ran(passes, *["waits for the device"] * 10, *["a"] * 10)) == {"launched"}
    assert len(caplog.records) == 1
    assert "cannot be recorded as a CUDA graph (operation not permitted when stream is capturing)" in caplog.text
