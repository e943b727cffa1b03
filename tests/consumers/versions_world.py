"""Registered versions of digits that know some classes each, and unlabelled records to consolidate them on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.version_consolidation import VersionConsolidation, VersionReport
from consumers.version_teacher import VersionTeacher, check_of_one_kind, open_version
from model_store.model_uri import ModelUri
from model_store.registry import RegisteredVersion, RegistrationRequest, Registry
from pipeline.classifier import Classifier
from pipeline.codec.cloud_event import CloudEvent
from pipeline.codec.image import encode_png
from pipeline.network import build_network
from pipeline.record import Partition
from pipeline.restructuring.consolidation_settings import PLAIN_DMC, ConsolidationSettings
from pipeline.sample import InputSpec
from pipeline.settings import HoldOutSettings, InputSettings, NetworkSettings
from tests.consumers.digit_records import digit_images

SPEC = InputSpec(kind="image", shape=(1, 8, 8))
QUICK = ConsolidationSettings.model_validate({**PLAIN_DMC, "epochs": 20, "batch_size": 32, "min_unlabelled": 50})


def digits_classifier(classes: Sequence[str], seed: int = 0) -> Classifier:
    """Knows these digits well: a short training on the first thousand images."""
    x, y = digit_images()
    x, y = x[:1000], y[:1000]
    column = {int(name): number for number, name in enumerate(classes)}
    rows = [row for row, digit in enumerate(y) if int(digit) in column]
    network = build_network(NetworkSettings(options={"hidden": [32]}, initial_columns=16), SPEC, seed)
    inputs, labels = torch.from_numpy(x[rows]), torch.tensor([column[int(y[row])] for row in rows])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(inputs)[0], labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Classifier(network, classes, SPEC, InputSettings())


def register(registry: Registry, folder: Path, classifier: Classifier, stream: str = "digits") -> RegisteredVersion:
    """As a learner's registrar does."""
    number = len(registry.versions(stream)) + 1
    servable = folder / f"{stream}-{number}"
    classifier.save(servable)
    return registry.register(
        RegistrationRequest(
            stream=stream,
            state_id="0123456789abcdef",
            snapshot_sha256=hashlib.sha256(f"{stream} {number}".encode()).hexdigest(),
            offsets={Partition(f"{stream}.samples", 0): 100 * number},
            classes=classifier.class_names,
            trigger="periodic",
            servable=servable,
            records_trained=100 * number,
        )
    )


def unlabelled_log(digits: str, items: slice = slice(0, 1000), topic: str = "digits.unlabelled") -> InMemoryLog:
    """Images of these digits, without a label."""
    log = InMemoryLog(topic)
    x, y = digit_images()
    for item in np.flatnonzero(np.isin(y[items], [int(digit) for digit in digits])).tolist():
        event = CloudEvent(
            id=f"digit-{item}", source="tests", type="s", content_type="image/png", data=encode_png(x[items][item])
        )
        log.append(event.data, headers=tuple(event.headers()))
    return log


def accuracy(classifier: Classifier, digits: str) -> float:
    """On images that nobody has learnt from."""
    x, y = digit_images()
    rows = [row for row in range(1000, len(y)) if str(y[row]) in digits]
    said = classifier.predict_probabilities(x[rows]).argmax(axis=1)
    return float(
        np.mean([classifier.class_names[column] == str(y[row]) for column, row in zip(said, rows, strict=True)])
    )


class Bench:
    """A registry, a topic, and jobs on them."""

    def __init__(self, folder: Path, registry: Registry, log: InMemoryLog) -> None:
        self.folder, self.registry, self.log = folder, registry, log
        self._opened = 0
        self.steps = 0

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def open(self, uri: str) -> VersionTeacher:
        self._opened += 1
        return open_version(self.registry, ModelUri.parse(uri), self.folder / f"opened-{self._opened}")

    def run(
        self,
        old: str,
        new: str,
        *,
        settings: ConsolidationSettings = QUICK,
        register: str = "digits",
        stop_after: int | None = None,
        **changes: Any,
    ) -> VersionReport | None:
        teachers = self.open(old), self.open(new)
        check_of_one_kind(*teachers)
        stop, self.steps = threading.Event(), 0

        def progress(_stage: str, _done: int, _total: int) -> None:
            self.steps += 1
            if self.steps == stop_after:
                stop.set()

        scratch = self.folder / f"scratch-{self._opened}"
        scratch.mkdir()
        job = VersionConsolidation(
            registry=self.registry,
            register=register,
            unlabelled=InMemoryRecordSource(self.log),
            work=self.work,
            scratch=scratch,
            consolidation=settings,
            hold_out=HoldOutSettings(),
            seed=0,
            device="cpu",
            **changes,
        )
        return job.run(*teachers, progress=progress, stop=stop)

    def classifier(self, uri: str) -> Classifier:
        return self.open(uri).classifier
