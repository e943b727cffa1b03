"""What growing gives: classes come step by step, and every method sees each step's rows as often.

    python -m benchmarks.expansion --dataset cifar10 --steps s0-t5 --seeds 0 1 2 3 4 --data-root DIR --json FILE
    python -m benchmarks.expansion --dataset sequence --data-root DIR --json FILE

`--steps s0-t5`: five equal steps; `s50-t5`: half of the classes first, then five equal steps. Data sets: `cifar10`
(ResNet-18 with 16 channels, rehearsal 200), `cifar100` (64 channels, rehearsal 2000; wants its files and a GPU),
`mnist` (two layers of 100, rehearsal 200), and `sequence`: MNIST, SVHN where its files are at hand, CIFAR-10, one after
the other, with five samples a class to rehearse. Of each class there are `--per-class` labelled rows, rows without
labels (of all classes, in every step) and test rows, drawn by the seed.

Rows, each judged after each step on the test rows of all classes so far, nobody being told the step:

    joint, finetune, der_pp       networks of one size (`benchmarks/step_learners.py`), which hear no unlabelled row
    expansion                     the defaults of `pipeline/restructuring/expansion_settings.py`, guesses shared out
                                  evenly, and what `SOURCES` sets (`expansion_problem.py`); each addition pruned
                                  until all steps come to about 1.5 times the single network, as whoever knows their
                                  number can (a stream consolidates instead); then other `VARIANTS`
    after_der_pp                  the same, but the first step is DER++'s, as a stream's learner begins before it grows
    der_yan                       a network that grows unpruned and hears no unlabelled row (Yan et al. 2021)

`--passes` over the labelled rows of a step are what each has: an expansion's pruned network is distilled on unlabelled
rows, and where it hears none the passes are divided between both networks. The first step's network is a sub-module
alone, pruned less or not at all; most unlabelled rows are then of classes that nobody has seen: none is guessed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import command_of, run, write_result
from benchmarks.expansion_problem import SOURCES, Problem, problem_of
from benchmarks.machine import machine
from benchmarks.step_learners import LEARNERS, fresh_network, right
from pipeline.device import choose_device, configure_torch
from pipeline.network import Network
from pipeline.restructuring.expansion import Expansion, Inputs
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.restructuring.teacher import Teacher
from pipeline.settings import LearnerSettings

# Settings over the defaults.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "expansion": {},
    "without_mixmatch": {"mixmatch_weight": 0.0},
    "without_unlabelled": {},
    "unpruned": {"prune": None},
    "random_pruning": {"ranking": "random"},
    "after_der_pp": {},
    "der_yan": {"prune": None},
}
HEAR_NO_UNLABELLED = ("without_unlabelled", "der_yan")
BEGINS_WITH = {"after_der_pp": "der_pp"}  # who learns the first step
METHODS = (*LEARNERS, *VARIANTS)
DEFAULT_METHODS = ("joint", "finetune", "der_pp", "der_yan", "expansion", "without_mixmatch", "unpruned")


def settings_of(problem: Problem, variant: str, step: int, args: argparse.Namespace) -> ExpansionSettings:
    """The variant's settings. All passes over the labelled rows are the temporary network's, but for those that a
    pruned one has where no unlabelled rows are heard: 4 of 10."""
    of_problem = problem.expansion if step else problem.beginning
    settings = ExpansionSettings.model_validate({**of_problem, **VARIANTS[variant], **args.set})
    if settings.prune is None or variant not in HEAR_NO_UNLABELLED:
        return settings.model_copy(update={"epochs": args.passes})
    distilled = 4 * args.passes // 10
    return settings.model_copy(update={"epochs": args.passes - distilled, "distillation_epochs": distilled})


def grown(problem: Problem, before: Network | None, step: int, args: argparse.Namespace, seed: int) -> Network:
    """The network after this step; `before`: as the step found it."""
    device = choose_device(args.device)
    new = problem.steps[step]
    seen = problem.seen(step)
    old = seen[: len(seen) - len(new)]
    memory = problem.memory(old)
    inputs = Inputs(
        class_names=seen,
        new_classes=new,
        records=problem.rows(new),
        reservoir=memory,
        unlabelled=problem.unlabelled[: 0 if args.variant in HEAR_NO_UNLABELLED else None],
        present=None if before is None else Teacher(before, old),
        like=fresh_network(problem, seed, device),
        columns=len(problem.names),
        augmentation=problem.augmentation,
        precision=args.precision,
    )
    job = Expansion(inputs, settings_of(problem, args.variant, step, args), device=device, seed=seed + 1000 * step)
    network = job.run()
    assert network is not None
    return network


def measure(problem: Problem, method: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One method over all steps: its row."""
    device = choose_device(args.device)
    began = time.perf_counter()
    accuracies: list[float] = []
    parameters: list[int] = []
    first = BEGINS_WITH.get(method, method)
    learner = LEARNERS[first](problem, args, seed, device) if first in LEARNERS else None
    network: Network | None = None
    args.variant = method
    learns_all_steps = first == method
    for step in range(len(problem.steps)):
        if learner is not None and (step == 0 or learns_all_steps):
            learner.learn(step)
            network = learner.network
        else:
            network = grown(problem, network, step, args, seed)
        names = problem.seen(step)
        accuracies.append(right(network, problem.test_rows(names), names, device))
        parameters.append(sum(parameter.numel() for parameter in network.parameters()))
    row = {"accuracies": accuracies, "parameters": parameters, "seconds": time.perf_counter() - began}
    shown = " ".join(f"{accuracy:.1%}" for accuracy in accuracies)
    print(f"seed {seed} {method}: {shown}, {parameters[-1]:,} parameters, {row['seconds']:.0f} s", file=sys.stderr)
    return row


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=sorted(SOURCES), default="cifar10")
    parser.add_argument("--steps", default="s0-t5")
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=DEFAULT_METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--per-class", type=int, nargs=3, default=(500, 500, 200), metavar=("L", "U", "T"))
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the methods of one size")
    parser.add_argument("--batch-size", type=int, default=16, help="of the methods of one size")
    parser.add_argument("--alpha", type=float, default=0.2, help="of DER++")
    parser.add_argument("--beta", type=float, default=1.0, help="of DER++")
    parser.add_argument("--set", type=json.loads, default={}, help="settings of all expansions, as JSON")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    args.command = command_of("benchmarks.expansion", arguments)
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top. Raises `UserError` for what the user can put right."""
    args = parse(arguments)
    configure_torch(LearnerSettings(device=args.device, threads=args.threads))
    torch.set_float32_matmul_precision("highest")
    runs: list[dict[str, Any]] = []

    def write(problem: Problem) -> None:
        """After every row: a run of hours that is cut must not lose them."""
        if args.json is not None:
            result = {
                "command": args.command,
                "expansion": {
                    "dataset": args.dataset,
                    "steps": [len(step) for step in problem.steps],
                    "scenario": args.steps,
                    "rehearsal": problem.rehearsal,
                    "passes": args.passes,
                    "per_class": list(args.per_class),
                    "precision": args.precision,
                },
                "seeds": args.seeds,
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "machine": machine(),
                "runs": runs,
            }
            write_result(args.json, result)

    for seed in args.seeds:
        problem = problem_of(args.dataset, args.steps, args.data_root, seed, per_class=tuple(args.per_class))
        rows: dict[str, Any] = {}
        runs.append({"seed": seed, "rows": rows})
        for method in args.methods:
            rows[method] = measure(problem, method, args, seed)
            write(problem)


if __name__ == "__main__":
    run(main, "expansion")
