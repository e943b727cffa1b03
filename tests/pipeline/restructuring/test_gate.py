from __future__ import annotations

import numpy as np
import torch

from pipeline.network import build_network
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.gate import GateTraining
from pipeline.sample import InputSpec
from pipeline.settings import NetworkSettings


def test_it_tells_new_from_old_though_the_unlabelled_rows_hold_both() -> None:
    random = np.random.default_rng(0)

    def rows(count: int, place: float) -> np.ndarray:
        return (random.normal(size=(count, 4)) + place).astype(np.float32)

    unlabelled = np.concatenate([rows(500, -1.0), rows(500, 1.0)])
    network = build_network(
        NetworkSettings(options={"hidden": [16]}, initial_columns=2), InputSpec(kind="vector", shape=(4,)), 0
    )
    gate = GateTraining(
        unlabelled,
        rows(200, 1.0),
        rows(20, -1.0),
        network,
        ConsolidationSettings(gate_epochs=30, learning_rate=3e-3),
        device=torch.device("cpu"),
        seed=0,
    )
    while not gate.training.is_done:
        gate.step()
    old, new = gate.log_odds(rows(300, -1.0)), gate.log_odds(rows(300, 1.0))
    assert (new[:, None] > old[None]).float().mean() > 0.97
