"""The second teacher: a network of the student's kind that learns the new classes from their records alone.

    loss = CE(y, s(x)) over its own classes                                                   what the paper asks

Such a network is just as loud about what it has never seen. So it may hear outliers o, the reservoir's samples of the
old classes, of which it is to say nothing:

         + weight * mean over o and over its classes of -log softmax(s(o))

Hendrycks, Mazeika, Dietterich 2019, "Deep Anomaly Detection with Outlier Exposure", arXiv:1812.04606, section 4.

Legend: B = rows, N = its classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from pipeline import keyed_randomness
from pipeline.device import to_device
from pipeline.network import Network, network_from_architecture
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.labelled_rows import LabelledRows
from pipeline.restructuring.teacher import Teacher
from pipeline.restructuring.training import Training
from pipeline.state import StateTree


class SpecialistTraining:
    """A step at a time."""

    def __init__(
        self,
        class_names: Sequence[str],
        records: LabelledRows,
        outliers: npt.NDArray[np.generic],
        like: Network,
        body: Network | None,
        settings: ConsolidationSettings,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        """`outliers` (rows, ...): may be none. `like`: the kind of network. `body`: whose it begins with."""
        self.class_names = tuple(class_names)
        self._settings = settings
        self._device = device
        self._network = network_like(like, len(class_names), seed, "specialist", body=body).to(device)
        self._network.train()
        column_of: Mapping[str, int] = {name: column for column, name in enumerate(class_names)}
        self._x = to_device(records.x, device)
        self._y = to_device(np.array([column_of[label] for label in records.labels], dtype=np.int64), device)
        self._outliers = to_device(outliers, device)
        self.training = Training(
            self._network,
            rows=len(records),
            epochs=settings.specialist_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.specialist_learning_rate or settings.learning_rate,
            weight_decay=settings.weight_decay,
            seed=seed,
            purpose="restructuring/specialist",
        )

    def step(self) -> None:
        rows_B = to_device(self.training.rows(), self._device)
        x = self._x[rows_B]
        if len(self._outliers):
            drawn = self.training.draw("outliers", len(self._outliers), len(rows_B))
            x = torch.cat([x, self._outliers[to_device(drawn, self._device)]])
        logits_BN, _ = self._network(x)
        loss = F.cross_entropy(logits_BN[: len(rows_B)], self._y[rows_B])
        if len(self._outliers):
            silent = -F.log_softmax(logits_BN[len(rows_B) :], dim=1).mean()
            loss = loss + self._settings.outlier_weight * silent
        self.training.step(loss)

    def teacher(self) -> Teacher:
        assert self.training.is_done, "it has not learnt yet"
        return Teacher(self._network, self.class_names)

    def state(self) -> StateTree:
        return self.training.state()

    def load_state(self, state: StateTree) -> None:
        self.training.load_state(state)


def network_like(like: Network, columns: int, seed: int, purpose: str, *, body: Network | None) -> Network:
    """A network of the same compact kind, with so many columns, on the CPU: with this body's weights, or drawn anew.

    Of a network that has grown, the kind is that of its first sub-module, and so are the weights: a specialist, a gate
    and a student are of the size that networks had before, or consolidation would never make one small again."""
    drawn = keyed_randomness.torch_seed(seed, f"restructuring/{purpose}")
    compact = like.body.compact
    architecture = {**like.architecture, "backbone": compact.name, "options": compact.resolved_options}
    network = network_from_architecture({**architecture, "columns": columns}, drawn)
    if body is not None:
        network.body.load_state_dict(body.body.compact.state_dict())
    return network
