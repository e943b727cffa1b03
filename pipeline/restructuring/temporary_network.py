"""Stage 1 of an expansion: a temporary network of the compact kind learns the new classes.

    loss = CE over the records and the rehearsal samples, each class with the same weight
         + ramped weight * MixMatch's loss on unlabelled rows                                            (`mixmatch.py`)
         + penalty * sum of |gamma|                                                                      (`pruning.py`)

Where we differ from EDE-Net: its temporary network hears the new classes alone. Features that never saw an old class
confuse it with the new ones; so ours hears the rehearsal samples, and has outputs for all classes.

Legend: B = rows of a step, U = unlabelled rows of a step, K = augmented views of each, C = classes, O = old classes
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import keyed_randomness
from pipeline.device import to_device
from pipeline.network import Network
from pipeline.precision import Precision, passed
from pipeline.restructuring import mixmatch
from pipeline.restructuring.augmented_views import AugmentedViews
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.restructuring.lesson import Batch, Lesson
from pipeline.restructuring.pruning import scale_penalty
from pipeline.restructuring.training import Training
from pipeline.settings import AugmentationSettings
from pipeline.state import StateTree

_PURPOSE = "restructuring/temporary"


class TemporaryTraining:
    """A step at a time."""

    def __init__(
        self,
        network: Network,
        lesson: Lesson,
        present_UO: Tensor | None,
        settings: ExpansionSettings,
        augmentation: AugmentationSettings,
        *,
        precision: Precision,
        seed: int,
    ) -> None:
        """`present_UO`: what the present network says of each unlabelled row, probabilities of the old classes; None:
        there are none, or it is not heard."""
        self.network = network.train()
        self.network.place_on(lesson.device, bfloat16=precision == "bfloat16")
        self._lesson, self._present_UO, self._settings = lesson, present_UO, settings
        self._precision: Precision = precision
        self._seed = seed
        can_mix = network.spec.kind != "text"  # half of one token and half of another is none
        self._hears_unlabelled = settings.mixmatch_weight > 0 and len(lesson.unlabelled) > 0 and can_mix
        self._views, self._of_unlabelled = (
            AugmentedViews(augmentation, network.spec, seed=seed, purpose=purpose, device=lesson.device)
            for purpose in (_PURPOSE, f"{_PURPOSE}/unlabelled")
        )
        self.training = Training(
            self.network,
            rows=lesson.records,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            seed=seed,
            purpose=_PURPOSE,
            falls="cosine",
        )

    def step(self) -> None:
        self.network.train()
        batch = self._lesson.batch(self.training, self._views)
        target_BC = F.one_hot(batch.y, self._lesson.classes).to(torch.float32)
        loss = (
            self._with_unlabelled(batch, target_BC)
            if self._hears_unlabelled
            else (mixmatch.cross_entropies(self._logits(batch.x), target_BC) * batch.weight).sum()
        )
        if self._settings.scale_penalty:
            loss = loss + self._settings.scale_penalty * scale_penalty(self.network.body)
        self.training.step(loss)

    def _with_unlabelled(self, batch: Batch, target_BC: Tensor) -> Tensor:
        """1. The labels of unlabelled rows are guessed. 2. All rows are mixed up with each other. 3. Both losses."""
        settings, training = self._settings, self.training
        # 1.
        drawn_U = training.draw("unlabelled", len(self._lesson.unlabelled), settings.unlabelled_per_step)
        rows_U = to_device(drawn_U, self._lesson.device)
        x_U, views = self._lesson.unlabelled[rows_U], settings.mixmatch_views
        changed = torch.cat([self._of_unlabelled.of(x_U, training.done * views + view) for view in range(views)])
        guessed_UC = self._guessed(changed, rows_U)
        # 2.
        x = torch.cat([batch.x, changed])
        target = torch.cat([target_BC, *[guessed_UC] * views])
        generator = keyed_randomness.generator(self._seed, f"{_PURPOSE}/mixed", training.done)
        x, target = mixmatch.mixed(generator, settings.mixmatch_alpha, x, target)
        # 3.
        labelled, logits = len(batch.x), self._logits(x)
        of_labelled = mixmatch.cross_entropies(logits[:labelled], target[:labelled]) * batch.weight
        weight = mixmatch.ramped(settings.mixmatch_weight, training.done, training.steps, over=settings.mixmatch_ramp)
        if settings.mixmatch_loss == "squared_error":
            of_unlabelled = mixmatch.squared_error(logits[labelled:], target[labelled:])
        else:
            of_unlabelled = mixmatch.cross_entropies(logits[labelled:], target[labelled:]).mean()
        return of_labelled.sum() + weight * of_unlabelled

    def _guessed(self, changed: Tensor, rows_U: Tensor) -> Tensor:
        """(U, C)."""
        with torch.no_grad():
            said = self._logits(changed).softmax(dim=1)
        said_UC = said.reshape(-1, len(rows_U), said.shape[1]).mean(dim=0)
        if self._present_UO is not None:
            said_UC = mixmatch.put_together(said_UC, self._present_UO[rows_U], self._lesson.old)
        return mixmatch.sharpened(said_UC, self._settings.sharpening)

    def _logits(self, x: Tensor) -> Tensor:
        return passed(self.network, x, self._precision)[0]

    def state(self) -> StateTree:
        return self.training.state()

    def load_state(self, state: StateTree) -> None:
        self.training.load_state(state)
