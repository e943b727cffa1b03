"""A classifier small enough to be registered many times, and a request for it."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_store.registry import MetricPoint, RegistrationRequest
from pipeline.classifier import Classifier
from pipeline.network import build_network
from pipeline.record import Partition
from pipeline.sample import InputSpec
from pipeline.settings import InputSettings, NetworkSettings

SPEC = InputSpec(kind="vector", shape=(2,))
CLASSES = ("no", "köln")


def tiny_classifier() -> Classifier:
    """Says "köln" exactly where the second value is larger."""
    network = build_network(NetworkSettings(backbone="mlp", options={"hidden": [2]}, initial_columns=4), SPEC, 0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.zero_()
            if name.endswith("weight"):
                parameter[:2, :2] = torch.eye(2)
    return Classifier(network, CLASSES, SPEC, InputSettings())


def payload(first: float, second: float) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([first, second], np.float32))
    return buffer.getvalue()


def request(servable: Path, number: int = 1, **changes: Any) -> RegistrationRequest:
    """Of snapshot `number`; `servable` is filled if it is not there."""
    if not servable.exists():
        tiny_classifier().save(servable)
    fields: dict[str, Any] = {
        "stream": "pets",
        "state_id": "0123456789abcdef",
        "snapshot_sha256": hashlib.sha256(str(number).encode()).hexdigest(),
        "offsets": {Partition("pets.samples", 1): 10 * number, Partition("pets.samples", 0): 7},
        "classes": CLASSES,
        "trigger": "periodic",
        "servable": servable,
        "records_trained": 100 * number,
        "average_forgetting": 0.125,
        "worst_class": "köln",
        "metrics": (
            MetricPoint(
                name="average_forgetting_ratio", value=0.1 * number, step=100 * number, timestamp_ms=1_000 + number
            ),
            MetricPoint(name="class_accuracy_ratio/köln!", value=0.5, step=100 * number, timestamp_ms=1_000 + number),
        ),
    }
    return RegistrationRequest(**{**fields, **changes})
