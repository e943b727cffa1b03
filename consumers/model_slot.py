"""The classifier that answers now: put there by one thread, taken by others between two batches."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pipeline.classifier import Classifier


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingModel:
    """A version, loaded."""

    version: int
    run_id: str | None
    classifier: Classifier


class ModelSlot:
    """Thread-safe. What was taken stays good after another one came: a batch is answered by one version."""

    def __init__(self) -> None:
        self._model: ServingModel | None = None
        self._is_there = threading.Event()

    @property
    def model(self) -> ServingModel | None:
        return self._model

    def put(self, model: ServingModel) -> None:
        """It answers from the next batch on."""
        self._model = model
        self._is_there.set()

    def wait(self, seconds: float) -> ServingModel | None:
        """The model, as soon as there is one; None where there is none in that time."""
        self._is_there.wait(seconds)
        return self._model
