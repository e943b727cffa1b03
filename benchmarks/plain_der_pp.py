"""DER++ as a plain training loop: the paper's algorithm in ordinary torch, for `throughput` to compare with.

    loss = CE(y, f(x)) + alpha * MSE(z', h(x')) + beta * CE(y'', f(x''))

    with (x', z') and (x'', y'') two independent draws from the buffer. Buzzega, Boschini, Porrello, Abati, Calderara
    2020, arXiv:2004.07211, algorithm 2: three forward passes, one step, and reservoir sampling of the incoming rows,
    with the logits of this very pass.

It is what somebody would write who needs nothing else: decoded rows in memory, a head of fixed width, classes that are
columns already; no Kafka, no snapshot, no repeats, no accuracy, no look at whether numbers are finite.

Legend: B = incoming rows, R = rows of one draw, N = capacity, M = rows of the stream, F = values of a row, K = classes
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class DerPlusPlusSettings:
    """The papers' protocol for Split-MNIST."""

    batch_size: int = 10
    draw_size: int = 128  # rows of one draw; there are two in an update
    buffer_size: int = 200
    hidden: int = 100  # units of each of the two hidden layers
    classes: int = 10
    learning_rate: float = 0.03
    alpha: float = 0.2
    beta: float = 1.0


class ReservoirBuffer:
    """N rows (x, y, z) chosen uniformly from all that were added (Vitter 1985, algorithm R)."""

    def __init__(self, capacity: int, features: int, classes: int, *, seed: int, device: torch.device) -> None:
        self.capacity = capacity
        self.seen = 0
        self.x_NF = torch.zeros(capacity, features, device=device)
        self.y_N = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.logits_NK = torch.zeros(capacity, classes, device=device)
        self._random = random.Random(seed)
        self._generator = torch.Generator(device).manual_seed(seed)

    def draw(self, size: int) -> Tensor:
        """min(size, filled) slots (R,) without replacement."""
        filled = min(self.seen, self.capacity)
        return torch.randperm(filled, generator=self._generator, device=self.x_NF.device)[:size]

    def add(self, x_BF: Tensor, y_B: Tensor, logits_BK: Tensor) -> None:
        """Offer rows one after the other; late in a stream nearly none of them is kept, so this costs little."""
        for row in range(len(x_BF)):
            slot = self.seen if self.seen < self.capacity else self._random.randrange(self.seen + 1)
            self.seen += 1
            if slot < self.capacity:
                self.x_NF[slot] = x_BF[row]
                self.y_N[slot] = y_B[row]
                self.logits_NK[slot] = logits_BK[row]


class PlainDerPlusPlus:
    """Model, optimizer and buffer, and the one update."""

    def __init__(self, features: int, settings: DerPlusPlusSettings, *, seed: int, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.model = perceptron(features, settings, seed).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=settings.learning_rate)
        self.buffer = ReservoirBuffer(settings.buffer_size, features, settings.classes, seed=seed, device=device)

    def update(self, x_BF: Tensor, y_B: Tensor) -> Tensor:
        """x (B, F) float32, y (B,) int64, on the device -> the loss, a scalar there."""
        settings, buffer = self.settings, self.buffer
        self.optimizer.zero_grad()
        logits_BK = self.model(x_BF)
        loss = F.cross_entropy(logits_BK, y_B)
        if buffer.seen:
            drawn_R = buffer.draw(settings.draw_size)
            loss = loss + settings.alpha * F.mse_loss(self.model(buffer.x_NF[drawn_R]), buffer.logits_NK[drawn_R])
            drawn_R = buffer.draw(settings.draw_size)
            loss = loss + settings.beta * F.cross_entropy(self.model(buffer.x_NF[drawn_R]), buffer.y_N[drawn_R])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        buffer.add(x_BF, y_B, logits_BK.detach())
        return loss.detach()

    def train(self, x_MF: Tensor, y_M: Tensor) -> None:
        """One pass over the stream x (M, F) float32, y (M,) int64, which may lie on the CPU."""
        size = self.settings.batch_size
        for x_BF, y_B in zip(torch.split(x_MF, size), torch.split(y_M, size), strict=True):
            self.update(x_BF.to(self.device), y_B.to(self.device))


def perceptron(features: int, settings: DerPlusPlusSettings, seed: int) -> nn.Sequential:
    """(B, F) -> (B, K) logits; two hidden layers, on the CPU. The caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(features, settings.hidden),
            nn.ReLU(),
            nn.Linear(settings.hidden, settings.hidden),
            nn.ReLU(),
            nn.Linear(settings.hidden, settings.classes),
        )
