"""The pruned network learns again what the unpruned one says: Hinton, Vinyals, Dean 2015, arXiv:1503.02531.

    loss = 1/2 CE(y, s(x)) + T^2 / 2 CE(softmax(t(x) / T), softmax(s(x) / T))     over records and rehearsal samples
         + weight * CE(q, s(u))                                                   over unlabelled rows and their guesses

Legend: B = rows of a step, U = unlabelled rows, C = classes
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.device import to_device
from pipeline.network import Network
from pipeline.precision import Precision, passed
from pipeline.restructuring import mixmatch
from pipeline.restructuring.augmented_views import AugmentedViews
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.restructuring.lesson import Lesson
from pipeline.restructuring.training import Training
from pipeline.settings import AugmentationSettings
from pipeline.state import StateTree

_PURPOSE = "restructuring/pruned"


class PrunedTraining:
    """A step at a time."""

    def __init__(
        self,
        network: Network,
        taught_by: Network,
        lesson: Lesson,
        guessed_UC: Tensor,
        settings: ExpansionSettings,
        augmentation: AugmentationSettings,
        *,
        precision: Precision,
        seed: int,
    ) -> None:
        """`guessed_UC`: the labels guessed for the lesson's unlabelled rows; none where they are not heard."""
        self.network = network.train()
        self.network.place_on(lesson.device, bfloat16=precision == "bfloat16")
        self._taught_by = taught_by.eval()
        self._lesson, self._guessed_UC, self._settings = lesson, guessed_UC, settings
        self._precision: Precision = precision
        self._views = AugmentedViews(augmentation, network.spec, seed=seed, purpose=_PURPOSE, device=lesson.device)
        self._of_unlabelled = AugmentedViews(
            augmentation, network.spec, seed=seed, purpose=f"{_PURPOSE}/unlabelled", device=lesson.device
        )
        self.training = Training(
            self.network,
            rows=lesson.records,
            epochs=settings.distillation_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            seed=seed,
            purpose=_PURPOSE,
            falls="cosine",
        )

    def step(self) -> None:
        self.network.train()
        lesson, temperature = self._lesson, self._settings.temperature
        batch = lesson.batch(self.training, self._views)
        x, labelled = batch.x, len(batch.x)
        if len(self._guessed_UC):
            drawn_U = self.training.draw("unlabelled", len(self._guessed_UC), self._settings.pseudo_per_step)
            rows_U = to_device(drawn_U, lesson.device)
            x = torch.cat([x, self._of_unlabelled.of(lesson.unlabelled[rows_U], self.training.done)])
        with torch.no_grad():
            taught_BC = (self._logits(self._taught_by, batch.x) / temperature).softmax(dim=1)
        logits = self._logits(self.network, x)
        target_BC = F.one_hot(batch.y, lesson.classes).to(torch.float32)
        true = mixmatch.cross_entropies(logits[:labelled], target_BC)
        taught = mixmatch.cross_entropies(logits[:labelled] / temperature, taught_BC)
        loss = (0.5 * (true + temperature**2 * taught) * batch.weight).sum()
        if len(self._guessed_UC):
            guessed = mixmatch.cross_entropies(logits[labelled:], self._guessed_UC[rows_U]).mean()
            loss = loss + self._settings.pseudo_weight * guessed
        self.training.step(loss)

    def _logits(self, network: Network, x: Tensor) -> Tensor:
        return passed(network, x, self._precision)[0]

    def state(self) -> StateTree:
        return self.training.state()

    def load_state(self, state: StateTree) -> None:
        self.training.load_state(state)
