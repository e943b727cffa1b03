"""The pruned network learns again what the unpruned one says: Hinton, Vinyals, Dean 2015, arXiv:1503.02531.

    loss = T^2 CE(softmax(t(u) / T), softmax(s(u) / T))     over unlabelled rows and rehearsal samples
         + 1/2 CE(y, s(x))                                  over the rehearsal samples

What it takes over needs no labels, and of rows without them there are more: so all passes over the new classes' records
are the temporary network's. Where there are fewer unlabelled rows than records, and than `most_unlabelled`, it learns
from the records instead:

    loss = 1/2 CE(y, s(x)) + T^2 / 2 CE(softmax(t(x) / T), softmax(s(x) / T))     over records and rehearsal samples

Legend: B = rows of a step, R = rehearsal samples of a step, C = classes
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
        settings: ExpansionSettings,
        augmentation: AugmentationSettings,
        *,
        precision: Precision,
        seed: int,
    ) -> None:
        self.network = network.train()
        self.network.place_on(lesson.device, bfloat16=precision == "bfloat16")
        self._taught_by = taught_by.eval()
        self._lesson, self._settings = lesson, settings
        self._precision: Precision = precision
        self._views, self._of_unlabelled = (
            AugmentedViews(augmentation, network.spec, seed=seed, purpose=purpose, device=lesson.device)
            for purpose in (_PURPOSE, f"{_PURPOSE}/unlabelled")
        )
        self._hears_unlabelled = len(lesson.unlabelled) >= min(lesson.records, settings.most_unlabelled)
        self.training = Training(
            self.network,
            rows=len(lesson.unlabelled) if self._hears_unlabelled else lesson.records,
            epochs=settings.distillation_epochs,
            batch_size=settings.distillation_batch_size if self._hears_unlabelled else settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            seed=seed,
            purpose=_PURPOSE,
            falls="cosine",
        )

    def step(self) -> None:
        self.network.train()
        self.training.step(self._on_unlabelled() if self._hears_unlabelled else self._on_records())

    def _on_unlabelled(self) -> Tensor:
        lesson = self._lesson
        rows_B = to_device(self.training.rows(), lesson.device)
        x = self._of_unlabelled.of(lesson.unlabelled[rows_B], self.training.done)
        rehearsed = lesson.rehearsed(self.training, self._views, self._settings.batch_size)
        if rehearsed is None:
            return self._taken_over(x, self._logits(self.network, x)).mean()
        rehearsed_x, y_R = rehearsed
        x = torch.cat([x, rehearsed_x])
        logits = self._logits(self.network, x)
        true = F.cross_entropy(logits[len(rows_B) :], y_R)
        return self._taken_over(x, logits).mean() + 0.5 * true

    def _on_records(self) -> Tensor:
        batch = self._lesson.batch(self.training, self._views)
        logits = self._logits(self.network, batch.x)
        true = F.cross_entropy(logits, batch.y, reduction="none")
        return (0.5 * (true + self._taken_over(batch.x, logits)) * batch.weight).sum()

    def _taken_over(self, x: Tensor, logits_BC: Tensor) -> Tensor:
        """(B,): T^2 times the cross-entropy to what the unpruned network says, both at temperature T."""
        temperature = self._settings.temperature
        with torch.no_grad():
            taught_BC = (self._logits(self._taught_by, x) / temperature).softmax(dim=1)
        return temperature**2 * mixmatch.cross_entropies(logits_BC / temperature, taught_BC)

    def _logits(self, network: Network, x: Tensor) -> Tensor:
        return passed(network, x, self._precision)[0]

    def state(self) -> StateTree:
        return self.training.state()

    def load_state(self, state: StateTree) -> None:
        self.training.load_state(state)
