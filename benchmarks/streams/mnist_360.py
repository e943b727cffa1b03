"""MNIST-360 as Mammoth's datasets/mnist_360.py defines it: digits turn, come, go and come back, three rounds.

Buzzega et al. 2020, arXiv:2004.07211, section 4.4; batches of 16. What the code does beyond the paper's words, and so
does this: an image of a part is drawn *with replacement* (a fresh shuffled loader is asked for its first image each
time); the test part turns the first 16 images of each digit only, again and again, from upright through 360 degrees
over as many views as the digit has test images.

Where we differ: our learner's batches are 16 records in the log's order, 3,379 of them; the original cuts a shorter one
where a pair of digits ends (19 of 3,387). The published figures are from a test part that was shuffled (until 2023), of
which Mammoth's DER++ makes about 1 to 2 points less than of this one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from benchmarks.streams.benchmark_stream import BenchmarkStream, Opened, Published, TestPart, decoded
from pipeline import keyed_randomness
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_stream import SampleStream
from producers.schedules.drifting import BATCH, CONFUSED_WHEN_TURNED, Drifting, published_part

_LEFT_OUT = CONFUSED_WHEN_TURNED[1]


class Mnist360(BenchmarkStream):
    """Records, order, angles and test part as published."""

    name: ClassVar[str] = "mnist-360"
    title: ClassVar[str] = "MNIST-360, general continual learning, one pass"
    published: ClassVar[Sequence[Published]] = (
        Published(source="DER++ (Buzzega et al. 2020)", accuracies={200: 54.16, 500: 69.62, 1000: 76.03}),
        Published(
            source="Mammoth's DER++ with its best arguments, run here (commit e75a491, 2026-11-25; 3 seeds)",
            accuracies={200: 58.2, 500: 71.1, 1000: 75.0},
        ),
    )
    # Mammoth, utils/best_args.py of 2021 to 2023
    arguments: ClassVar[Mapping[tuple[str, int], Mapping[str, Any]]] = {
        ("der_pp", buffer): {
            "optimizer": {"learning_rate": 0.2},
            "replay": {"draw_size": draw_size},
            "retention": {"der_pp": {"alpha": alpha, "beta": 1.0}},
        }
        for buffer, draw_size, alpha in ((200, 16, 0.5), (500, 16, 0.5), (1000, 128, 0.2))
    }
    settings: ClassVar[Mapping[str, Any]] = {"batch_size": BATCH, "network": {"initial_columns": 9}}

    def open(self, data_root: Path, seed: int, *, records: int | None = None, shuffled: bool = False) -> Opened:
        """`shuffled`: the same records, mixed."""
        dataset = open_dataset("mnist", DatasetOptions(data_root=data_root))
        stream = SampleStream(dataset, Drifting(as_published=True), seed=seed, records=records)
        draw_as_published(stream)
        if shuffled:
            order = keyed_randomness.generator(seed, "benchmark/shuffled").permutation(len(stream))
            assert stream.turn_degrees_N is not None, "a drifting stream turns"
            stream.item_N, stream.turn_degrees_N = stream.item_N[order], stream.turn_degrees_N[order]
        x, labels = _test_rows(data_root)
        return Opened(stream=stream, test=TestPart(x, labels, None))


def draw_as_published(stream: SampleStream) -> None:
    """Choose the images anew: each with replacement from the part of its class whose turn it is."""
    labels_N = stream.dataset.labels[stream.item_N]
    stream.repeat_N[:] = 0  # an image that comes again is turned, and not altered besides
    appearances: Counter[int] = Counter()
    for step in range(int(stream.step_N.max()) + 1):
        in_step = stream.step_N == step
        for label in dict.fromkeys(labels_N[in_step].tolist()):  # the pair's first class first
            of_class = np.flatnonzero(stream.dataset.labels == label)
            part = of_class[published_part(len(of_class), appearances[label])]
            appearances[label] += 1
            records = np.flatnonzero(in_step & (labels_N == label))
            draws = keyed_randomness.generator(stream.seed, f"benchmark/mnist-360/{label}", step)
            stream.item_N[records] = draws.choice(part, len(records))


@cache
def _test_rows(data_root: Path) -> tuple[npt.NDArray[np.generic], list[str]]:
    """Once for all seeds."""
    part = open_dataset("mnist", DatasetOptions(data_root=data_root, split="test"))
    payloads, labels = [], []
    for label, name in enumerate(part.classes):
        if name == _LEFT_OUT:
            continue
        of_class = np.flatnonzero(part.labels == label)
        for view in range(len(of_class)):
            image = int(of_class[view % BATCH])
            payloads.append(part.augmented_payload(image, None, view * 360.0 / len(of_class)))
            labels.append(name)
    return decoded(payloads, {}), labels
