"""What an update costs, part by part: retention terms, the rows' gradients of EWC++, precision, the CUDA graph.

    python -m benchmarks.update_cost [--network mlp resnet18] [--device cuda] --json FILE

The learner alone, on random rows that lie in memory: no records, no decoding, no snapshots. An update of

- mlp: 10 rows of 28x28, two hidden layers of 100, draws of 128 from 200, float32;
- resnet18: 32 images of 32x32, `--width` 64 channels, crops and mirrorings, draws of 32 from 200, in the precision of
  `auto` (bfloat16 on CUDA).

Variants take turns, so that what else the machine does falls on each of them alike. A figure is the median over turns
of the mean over a turn's updates, with the least and the most; each turn ends by waiting for the device.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command_line import command_of, run, write_result
from benchmarks.machine import machine
from benchmarks.methods import merged
from pipeline import keyed_randomness
from pipeline.device import choose_device, configure_torch
from pipeline.learner import Learner
from pipeline.sample import InputSpec
from pipeline.settings import LearnerSettings

_CLASSES = 10
_BATCHES = 8  # different ones, in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network and the work of its benchmark."""

    spec: InputSpec
    settings: Mapping[str, Any]
    warm_up: int  # updates before the first turn: the reservoir fills, and a graph is recorded
    updates: int  # of a turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """`settings` go over the network's."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    recorded: bool = True  # False: kernels are launched one by one
    cuda_only: bool = False


_DER_PP: Mapping[str, Any] = {"retention": {"der_pp": {}}}

VARIANTS = (
    Variant(name="fine-tuning", settings={"retention": {}}),
    Variant(name="DER++", settings=_DER_PP),
    Variant(name="DER++, three passes", settings={**_DER_PP, "replay": {"fused": False}}),
    Variant(name="DER++ and EWC++ (the default)"),
    Variant(
        name="DER++ and EWC++, the rows' gradients in every batch",
        settings={"retention": {"der_pp": {}, "ewc_pp": {"fisher_every": 1}}},
    ),
    Variant(name="DER++, kernels launched one by one", settings=_DER_PP, recorded=False, cuda_only=True),
    Variant(name="DER++, float32", settings={**_DER_PP, "precision": "float32"}, cuda_only=True),
    Variant(name="DER++, any kernels", settings={**_DER_PP, "deterministic": False}, cuda_only=True),
)


def networks(width: int) -> dict[str, Network]:
    """By the name that the command line has for them."""
    return {
        "mlp": Network(
            spec=InputSpec(kind="image", shape=(1, 28, 28)),
            settings={"batch_size": 10, "network": {"backbone": "mlp", "initial_columns": _CLASSES}},
            warm_up=60,
            updates=200,
        ),
        "resnet18": Network(
            spec=InputSpec(kind="image", shape=(3, 32, 32)),
            settings={
                "batch_size": 32,
                "network": {"backbone": "resnet18", "options": {"width": width}, "initial_columns": _CLASSES},
                "replay": {"draw_size": 32},
                "augmentation": {"crop_padding": 4, "horizontal_flip": True},
            },
            warm_up=30,
            updates=20,
        ),
    }


class Contestant:
    """A learner of one variant, and the rows that it learns again and again."""

    def __init__(self, network: Network, variant: Variant, args: argparse.Namespace) -> None:
        given = {"device": args.device, "threads": args.threads, "replay": {"capacity": 200}}
        self.settings = LearnerSettings.model_validate(merged(merged(given, network.settings), variant.settings))
        self.variant = variant
        self._network = network
        configure_torch(self.settings)
        self._learner = Learner(self.settings, network.spec)
        if not variant.recorded:
            self._learner.launch_one_by_one()
        rows = self.settings.batch_size
        random = keyed_randomness.generator(0, "update cost")
        batches = random.integers(0, 256, (_BATCHES, rows, *network.spec.shape), dtype=np.uint8)
        self._batches = itertools.cycle(batches)
        self._labels = [str(row % _CLASSES) for row in range(rows)]
        self.turn(network.warm_up)

    def turn(self, updates: int | None = None) -> float:
        """Milliseconds an update."""
        configure_torch(self.settings)
        updates = updates or self._network.updates
        began = time.perf_counter()
        for _ in range(updates):
            self._learner.update(next(self._batches), self._labels)
        if self._learner.device.type == "cuda":
            torch.cuda.synchronize(self._learner.device)
        return (time.perf_counter() - began) / updates * 1e3


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All networks; the document that --json writes."""
    load = os.getloadavg()
    device = choose_device(args.device)
    measured: dict[str, dict[str, Any]] = {}
    for name in args.network:
        variants = [variant for variant in VARIANTS if device.type == "cuda" or not variant.cuda_only]
        contestants = [Contestant(networks(args.width)[name], variant, args) for variant in variants]
        turns = [[contestant.turn() for contestant in contestants] for _ in range(args.repeat)]
        measured[name] = {
            contestant.variant.name: {
                "milliseconds": statistics.median(of_turns),
                "least": min(of_turns),
                "most": max(of_turns),
            }
            for contestant, of_turns in zip(contestants, zip(*turns, strict=True), strict=True)
        }
        print(table(name, measured[name]), flush=True)
    return {
        "update_costs": measured,
        "width": args.width,
        "threads": args.threads,
        "device": str(device),
        "repeat": args.repeat,
        "load_before": list(load),
        "machine": machine(),
        "command": args.command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def table(name: str, costs: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each variant."""
    lines = [f"{name:<55}{'ms an update':>14}"]
    lines += [
        f"{variant:<55}{cost['milliseconds']:>14.2f}   ({cost['least']:.2f} to {cost['most']:.2f})"
        for variant, cost in costs.items()
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top. Raises `UserError` for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(networks(1)), nargs="+", default=["mlp", "resnet18"])
    parser.add_argument("--width", type=int, default=64, help="channels of resnet18's first stage")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5, help="turns")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    args.command = command_of("benchmarks.update_cost", arguments)
    for name in ("width", "threads", "repeat"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is 1 or more; got {getattr(args, name)}")
    result = measure(args)
    if args.json is not None:
        write_result(args.json, result)


if __name__ == "__main__":
    run(main, "update_cost")
