"""What an expansion is compared with: networks of one size that learn step after step, all by the same optimizer.

    fine-tuning    CE on the step's rows
    DER++          CE(x) + alpha * mean((z' - h(x'))^2) + beta * CE(y'', f(x''))
                   Buzzega et al. 2020, arXiv:2004.07211, algorithm 2, as Mammoth passes several times over a step: the
                   reservoir is offered each row in every pass, augmented views pass the network, and rows as they were
                   are kept with what the network said of their views
    joint          CE on the rows of all steps so far, from new

Each pass of a step's rows is one epoch of AdamW on half a cosine (`Training`), as in an expansion.

Legend: B = rows of a step's batch, R = rows of a draw, K = classes
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.expansion_problem import Problem
from benchmarks.plain_der_pp import ReservoirBuffer
from pipeline.device import to_device
from pipeline.network import Network, build_network
from pipeline.precision import passed
from pipeline.restructuring.augmented_views import AugmentedViews
from pipeline.restructuring.labelled_rows import LabelledRows
from pipeline.restructuring.training import Training
from pipeline.settings import NetworkSettings


def fresh_network(problem: Problem, seed: int, device: torch.device) -> Network:
    """With a column for each class that will come."""
    settings = NetworkSettings.model_validate({**problem.backbone, "initial_columns": len(problem.names)})
    return build_network(settings, problem.spec, seed).to(device)


class StepLearner:
    """Epochs over the rows of one step after the other."""

    def __init__(self, problem: Problem, args: argparse.Namespace, seed: int, device: torch.device) -> None:
        self.problem, self.args, self.seed, self.device = problem, args, seed, device
        self.network = self._fresh()
        self.column = {name: column for column, name in enumerate(problem.names)}

    def _fresh(self) -> Network:
        network = fresh_network(self.problem, self.seed, self.device)
        network.place_on(self.device, bfloat16=self.args.precision == "bfloat16")
        return network

    def learn(self, step: int) -> None:
        self.epochs(self.problem.rows(self.problem.steps[step]), step)

    def epochs(self, rows: LabelledRows, step: int) -> None:
        """All passes over these rows."""
        x = to_device(rows.x, self.device)
        y = to_device(np.array([self.column[label] for label in rows.labels], np.int64), self.device)
        purpose = f"benchmark/{type(self).__name__}/{step}"
        views = AugmentedViews(
            self.problem.augmentation, self.problem.spec, seed=self.seed, purpose=purpose, device=self.device
        )
        training = Training(
            self.network.train(),
            rows=len(rows),
            epochs=self.args.passes,
            batch_size=self.args.batch_size,
            learning_rate=self.args.learning_rate,
            weight_decay=5e-4,
            seed=self.seed,
            purpose=purpose,
            falls="cosine",
        )
        while not training.is_done:
            rows_B = to_device(training.rows(), self.device)
            training.step(self.loss(x[rows_B], y[rows_B], views, training))

    def loss(self, x: Tensor, y: Tensor, views: AugmentedViews, training: Training) -> Tensor:
        return F.cross_entropy(self.logits(views.of(x, training.done)), y)

    def logits(self, x: Tensor) -> Tensor:
        return passed(self.network, x, self.args.precision)[0]


class Joint(StepLearner):
    """Nobody in a stream has the rows of the steps before."""

    def learn(self, step: int) -> None:
        self.network = self._fresh()
        self.epochs(self.problem.rows(self.problem.seen(step)), step)


class DerPlusPlus(StepLearner):
    """With a reservoir of the size of the others' rehearsal memory."""

    def __init__(self, problem: Problem, args: argparse.Namespace, seed: int, device: torch.device) -> None:
        super().__init__(problem, args, seed, device)
        values = int(np.prod(problem.spec.shape))
        self._buffer = ReservoirBuffer(problem.rehearsal, values, len(problem.names), seed=seed, device=device)

    def loss(self, x: Tensor, y: Tensor, views: AugmentedViews, training: Training) -> Tensor:
        args, buffer, shape = self.args, self._buffer, self.problem.spec.shape
        number = 3 * training.done  # of a set of views: each pass has its own
        logits_BK = self.logits(views.of(x, number))
        loss = F.cross_entropy(logits_BK, y)
        if buffer.seen:
            slots_R, others_R = buffer.draw(len(x)), buffer.draw(len(x))
            first, second = (buffer.x_NF[slots].to(torch.uint8).reshape(-1, *shape) for slots in (slots_R, others_R))
            dark = F.mse_loss(self.logits(views.of(first, number + 1)), buffer.logits_NK[slots_R])
            replay = F.cross_entropy(self.logits(views.of(second, number + 2)), buffer.y_N[others_R])
            loss = loss + args.alpha * dark + args.beta * replay
        buffer.add(x.reshape(len(x), -1).float(), y, logits_BK.detach())
        return loss


LEARNERS: dict[str, type[StepLearner]] = {"finetune": StepLearner, "der_pp": DerPlusPlus, "joint": Joint}


def right(network: Network, rows: LabelledRows, names: Sequence[str], device: torch.device) -> float:
    """The share of the rows that are recognised among the first `len(names)` classes of the network."""
    said: list[Tensor] = []
    network.eval()
    with torch.no_grad():
        for begin in range(0, len(rows), 256):
            logits_BK, _ = network(to_device(rows.x[begin : begin + 256], device))
            said.append(logits_BK[:, : len(names)].argmax(dim=1))
    columns = torch.cat(said).tolist()
    return float(np.mean([names[column] == label for column, label in zip(columns, rows.labels, strict=True)]))
