"""A stream of digits with hold-outs, and versions of it that differ in what they know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deploy.settings import Settings, load_settings
from model_store.registry import RegisteredVersion, Registry
from pipeline.classifier import Classifier
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import STREAM, World
from tests.consumers.versions_world import digits_classifier, register

# What a loaded machine does to a latency is nothing to these tests.
LENIENT = {"latency_ratio": 1e6, "calibration_margin": 1, "min_class_samples": 2}


def learnt_state(folder: Path) -> Path:
    """Without brokers: its hold-outs are of the digits 0 to 5."""
    world = World(folder)
    world.write(digit_stream(120, clean=True))
    world.learn()
    return folder


def settings_with(tracking_uri: str | None = None, servers: str = "127.0.0.1:1", **promotion: Any) -> Settings:
    """Lenient but for what is given."""
    settings = load_settings(None, {"registry.tracking_uri": tracking_uri, "kafka.bootstrap_servers": servers})
    changed = type(settings.promotion).model_validate({**LENIENT, **promotion})
    return settings.model_copy(update={"promotion": changed})


def good(classes: Sequence[str] = "0123456789", seed: int = 0) -> Classifier:
    return digits_classifier(tuple(classes), seed)


def untrained(classes: Sequence[str] = "0123456789") -> Classifier:
    """Says the same of everything."""
    classifier = digits_classifier(tuple(classes))
    with torch.no_grad():
        for parameter in classifier.network.parameters():
            parameter.zero_()
    return classifier


def versions_of(registry: Registry, folder: Path, *classifiers: Classifier) -> list[RegisteredVersion]:
    """Registered in this order, as versions 1, 2, ... of the stream."""
    return [register(registry, folder, classifier, STREAM) for classifier in classifiers]
