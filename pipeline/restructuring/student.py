"""The student: one network of the compact kind, which takes over what the teachers said of unlabelled rows.

Legend: N = unlabelled rows, B = rows of a step, K = its classes, D = width of the features, P = positions of a layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import keyed_randomness
from pipeline.device import to_device
from pipeline.network import Network, keyed_initialisation
from pipeline.restructuring import distillation
from pipeline.restructuring.activations import Activations
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.specialist import network_like
from pipeline.restructuring.teacher import Answers, Teacher
from pipeline.restructuring.training import Training
from pipeline.restructuring.warm_start import warm_start
from pipeline.state import StateTree


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What the student learns from. Rows on the CPU, answers on the device."""

    x: npt.NDArray[np.generic]  # (N, ...)
    target_NK: Tensor
    answers: Sequence[Answers]  # of each teacher, where something beside the logits is taken over
    layers: Sequence[str]  # whose attention is
    replay_x: npt.NDArray[np.generic]  # samples of the reservoir
    replay_y: npt.NDArray[np.int64]


class StudentTraining:
    """A step at a time."""

    def __init__(
        self, network: Network, lesson: Lesson, settings: ConsolidationSettings, *, device: torch.device, seed: int
    ) -> None:
        self.network = network.to(device)
        self._lesson, self._settings, self._device = lesson, settings, device
        self._x = to_device(lesson.x, device)
        self._replay_x = to_device(lesson.replay_x, device)
        self._replay_y = to_device(lesson.replay_y, device)
        self._replays = settings.replay_weight > 0 and len(lesson.replay_y) > 0
        with keyed_initialisation(keyed_randomness.torch_seed(seed, "restructuring/regressors"), "regressors"):
            regressors = [nn.Linear(network.body.width, width) for width in self._widths()]
        self._regressors = nn.ModuleList(regressors).to(device)
        self.network.train()
        self.training = Training(
            nn.ModuleDict({"network": self.network, "regressors": self._regressors}),
            rows=len(lesson.x),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            seed=seed,
            purpose="restructuring/student",
        )

    def _widths(self) -> list[int]:
        """Of each teacher's features; none where they are no hints."""
        if self._settings.distillation != "hints":
            return []
        return [answers.features_BD.shape[1] for answers in self._lesson.answers if answers.features_BD is not None]

    def step(self) -> None:
        rows_B = to_device(self.training.rows(), self._device)
        x, replayed = self._x[rows_B], 0
        if self._replays:
            slots_R = to_device(self.training.draw("replay", len(self._replay_y), len(rows_B)), self._device)
            x, replayed = torch.cat([x, self._replay_x[slots_R]]), len(slots_R)
        with Activations(self.network, self._lesson.layers) as activations:
            logits, features = self.network(x)
            of_layers = [activation[: len(rows_B)] for activation in activations.taken()]
        target_BK = self._lesson.target_NK[rows_B]
        known = target_BK.shape[1]
        loss = self._distilled(logits[: len(rows_B), :known], target_BK)
        if self._lesson.answers:
            loss = loss + self._settings.beside_weight * self._beside(rows_B, features[: len(rows_B)], of_layers)
        if replayed:
            of_replay = F.cross_entropy(logits[len(rows_B) :, :known], self._replay_y[slots_R])
            loss = loss + self._settings.replay_weight * of_replay
        self.training.step(loss)

    def _distilled(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        if self._settings.distillation == "temperature":
            return distillation.temperature_divergence(logits_BK, target_BK, self._settings.temperature)
        return distillation.squared_error(logits_BK, target_BK)

    def _beside(self, rows_B: Tensor, features_BD: Tensor, of_layers: Sequence[Tensor]) -> Tensor:
        """Hints, attention or relations: the mean over the teachers."""
        losses: list[Tensor] = []
        for place, answers in enumerate(self._lesson.answers):
            if self._settings.distillation == "attention":
                maps = [distillation.attention_map(activation) for activation in of_layers]
                losses.append(distillation.attention_error(maps, [taught[rows_B] for taught in answers.maps]))
                continue
            assert answers.features_BD is not None, "hints and relations are of features"
            taught_BD = answers.features_BD[rows_B]
            if self._settings.distillation == "hints":
                losses.append(distillation.hint_error(self._regressors[place](features_BD), taught_BD))
            else:
                losses.append(distillation.relational_error(features_BD, taught_BD))
        return torch.stack(losses).mean()

    def state(self) -> StateTree:
        return self.training.state()

    def load_state(self, state: StateTree) -> None:
        self.training.load_state(state)


def new_student(
    old: Teacher,
    class_names: Sequence[str],
    columns: int,
    settings: ConsolidationSettings,
    seed: int,
    *,
    parent: Teacher | None = None,
    fresh: Network | None = None,
) -> Network:
    """As it begins: of the old teacher's compact architecture. From a teacher (that one, or `parent`, the learner's own
    network, where that is of the same architecture, or of the student's): its body, and its head centred over its
    classes, so that of these the student says at once what it is to say. Of one with several sub-modules it has the
    newest, which knows the classes of all that came before it, among its channels (`warm_start.py`). Other columns
    begin as a fresh head's. `fresh`: whose body a fresh student begins with; None: it is drawn."""
    if settings.initialisation == "fresh":
        return network_like(old.network, columns, seed, "student", body=fresh)
    begins_as, network = old, network_like(old.network, columns, seed, "student", body=None)
    if settings.initialisation == "parent" and parent is not None and _of_a_kind(parent.network, old.network, network):
        begins_as = parent
    head, taught = network.head, begins_as.network.head
    its_columns = [class_names.index(name) for name in begins_as.class_names]
    known, width = len(begins_as.class_names), network.body.width
    compact = begins_as.network.body.compact
    if compact is not begins_as.network.body and warm_start(network, begins_as.network, its_columns):
        weight_OD, bias_O = head.weight[its_columns].detach(), head.bias[its_columns].detach()
    else:
        network.body.load_state_dict(compact.state_dict())
        weight_OD, bias_O = taught.weight[:known, :width].detach().cpu(), taught.bias[:known].detach().cpu()
    with torch.no_grad():
        head.weight[its_columns] = weight_OD - weight_OD.mean(dim=0)
        head.bias[its_columns] = bias_O - bias_O.mean()
    return network


def _of_a_kind(one: Network, *others: Network) -> bool:
    """Whether it has the architecture of one of the others, whatever their columns."""
    return any({**one.architecture, "columns": 0} == {**other.architecture, "columns": 0} for other in others)
