"""Small learners on a CUDA device, one for each kind of network, and batches for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline import keyed_randomness
from pipeline.device import configure_torch
from pipeline.learner import Learner, UpdateReport
from pipeline.sample import InputSpec
from pipeline.settings import LearnerSettings

IMAGE = InputSpec(kind="image", shape=(3, 32, 32))
VECTOR = InputSpec(kind="vector", shape=(20,))
TEXT = InputSpec(kind="text", shape=(16,))

KINDS: dict[str, tuple[InputSpec, dict[str, Any]]] = {
    "mlp": (VECTOR, {"optimizer": {"momentum": 0.5}}),
    "mlp_ewc": (VECTOR, {"retention": {"der_pp": {}, "ewc": {"min_records": 50}}, "averaging": {"rate": 0.1}}),
    "resnet18": (
        IMAGE,
        {
            "network": {"options": {"width": 8}, "initial_columns": 4},
            "augmentation": {"crop_padding": 2, "horizontal_flip": True, "rotation_degrees": 10},
        },
    ),
    "resnet18_three_passes": (
        IMAGE,
        {
            "network": {"options": {"width": 8}, "initial_columns": 4},
            "retention": {"der_pp": {}},
            "replay": {"fused": False},
        },
    ),
    "text_encoder": (TEXT, {}),
}


def settings(kind: str, **changes: Any) -> LearnerSettings:
    given: dict[str, Any] = {"device": "cuda", "network": {"initial_columns": 4}, **KINDS[kind][1], **changes}
    given["replay"] = {"capacity": 40, "draw_size": 16, **given.get("replay", {})}
    return LearnerSettings.model_validate(given)


def batches(kind: str, rows: int = 8) -> Iterator[tuple[npt.NDArray[Any], list[str]]]:
    """Endless; a class comes every 15 batches, up to six, so that the head of four columns grows."""
    spec, number = KINDS[kind][0], 0
    while True:
        rng = keyed_randomness.generator(0, "test stream", number)
        labels = rng.integers(0, min(number // 15 + 1, 6), rows)
        if spec.kind == "image":
            x: npt.NDArray[Any] = rng.integers(0, 128, (rows, *spec.shape), dtype=np.uint8)
            x[:, labels % 3] += (20 * labels[:, None, None]).astype(np.uint8)
        elif spec.kind == "vector":
            x = rng.standard_normal((rows, *spec.shape), dtype=np.float32) + labels[:, None].astype(np.float32)
        else:
            x = rng.integers(1, 200, (rows, *spec.shape), dtype=np.int32)
        yield x, [f"class {label}" for label in labels]
        number += 1


def learn(learner: Learner, stream: Iterator[tuple[npt.NDArray[Any], list[str]]], count: int) -> list[UpdateReport]:
    return [learner.update(*next(stream)) for _ in range(count)]


@contextmanager
def deterministic(learner_settings: LearnerSettings) -> Iterator[None]:
    """As a process sets torch up; after, as it was."""
    mode = torch.get_deterministic_debug_mode()
    configure_torch(learner_settings)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
