"""Stage 2 of an expansion: one head over the features of all sub-modules, tuned on as many rows of each class.

    loss = CE(y, h(x)) over the class-balanced rehearsal set
         + ramped weight * CE(q, h(u)) over twice as many unlabelled rows and their guessed labels     (`mixmatch.py`)
         + anchor * mean over the classes of the squared distance of a class's weights from where they began

It begins as the sub-module's own head, which knows all classes, or as what it and the present network's say together.
The features are standardised while it is tuned, since sub-modules are loud and quiet ones: (x - mean) / std over the
rehearsal set; and they are mixed up with each other, as are their labels, since so few rows are soon learnt by heart:
Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz, Bengio 2019, "Manifold Mixup", ICML, arXiv:1806.05236.

Yan, Xie, He 2021, arXiv:2103.16788, section 3.4, tune a head drawn anew on such a set ("classifier learning").

Legend: B = rows of a step, U = unlabelled rows, D = width of all features, O = of the old ones, C = classes
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import keyed_randomness
from pipeline.device import to_device
from pipeline.network import Network
from pipeline.precision import Precision, passed
from pipeline.restructuring import mixmatch
from pipeline.restructuring.augmented_views import AugmentedViews
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.restructuring.lesson import RehearsalSet
from pipeline.restructuring.training import Training
from pipeline.settings import AugmentationSettings
from pipeline.state import StateTree

_PURPOSE = "restructuring/joint_head"
_ROWS = 256  # of one pass
_VIEWS = {"rehearsal": 8, "unlabelled": 2}  # of each row, where they are made once
_RAMP = 0.4  # share of the steps over which the weight of guessed labels rises
_LEAST_STD = 1e-3  # a feature that never moves is left as small as it is


def begin_head(joint: Network, sub_module: Network, heard_classes: int, classes: int) -> None:
    """What is said first: by the sub-module, of all classes; and by the present network, of its first `heard_classes`.
    Spare columns say what the present network's say."""
    old = joint.body.width - sub_module.body.width
    head, added = joint.head, sub_module.head
    with torch.no_grad():
        head.weight[heard_classes:classes, :old] = 0
        head.bias[heard_classes:classes] = 0
        head.weight[:classes, old:] = added.weight[:classes].cpu()
        head.bias[:classes] += added.bias[:classes].cpu()


class HeadTraining:
    """A step at a time. Until `finish`, the network's head is one of the standardised features."""

    def __init__(
        self,
        network: Network,
        rehearsal: RehearsalSet,
        settings: ExpansionSettings,
        augmentation: AugmentationSettings,
        *,
        precision: Precision,
        seed: int,
    ) -> None:
        """Running statistics normalise all along: the set is too small to learn others from."""
        device = rehearsal.device
        self.network = network.eval().requires_grad_(True)
        self.network.place_on(device, bfloat16=precision == "bfloat16")
        self._learns_below = settings.sub_modules_share is not None
        if not self._learns_below:
            self.network.body.requires_grad_(False)
        self._rehearsal, self._settings = rehearsal, settings
        self._precision: Precision = precision
        self._seed = seed
        self._views, self._of_unlabelled = (
            AugmentedViews(augmentation, network.spec, seed=seed, purpose=purpose, device=device)
            for purpose in (_PURPOSE, f"{_PURPOSE}/unlabelled")
        )
        self._made: dict[str, list[Tensor]] = {"rehearsal": [], "unlabelled": []}
        self._mean_D, self._std_D = self._statistics()
        self._standardise(network.head)
        self._began_CD = network.head.weight.detach()[: rehearsal.classes].clone()
        self.training = Training(
            self.network,
            rows=len(rehearsal.y),
            epochs=settings.head_epochs,
            batch_size=settings.head_batch_size,
            learning_rate=settings.head_learning_rate,
            weight_decay=0.0,
            seed=seed,
            purpose=_PURPOSE,
            falls="cosine",
            shares={"body.": settings.sub_modules_share or 1.0},
        )

    def step(self) -> None:
        rehearsal, classes = self._rehearsal, self._rehearsal.classes
        rows_B = to_device(self.training.rows(), rehearsal.device)
        features, labelled = self._of_views("rehearsal", rows_B), len(rows_B)
        target = F.one_hot(rehearsal.y[rows_B], classes).to(torch.float32)
        if len(rehearsal.guessed_UC):
            drawn_U = self.training.draw("unlabelled", len(rehearsal.guessed_UC), 2 * self._settings.head_batch_size)
            rows_U = to_device(drawn_U, rehearsal.device)
            features = torch.cat([features, self._of_views("unlabelled", rows_U)])
            target = torch.cat([target, rehearsal.guessed_UC[rows_U]])
        features = (features - self._mean_D) / self._std_D
        if self._settings.head_mixes:
            generator = keyed_randomness.generator(self._seed, f"{_PURPOSE}/mixed", self.training.done)
            features, target = mixmatch.mixed(generator, self._settings.mixmatch_alpha, features, target)
        logits = self.network.head(features)[:, :classes]
        losses = mixmatch.cross_entropies(logits, target)
        loss = losses[:labelled].mean()
        if len(losses) > labelled:
            weight = mixmatch.ramped(self._settings.pseudo_weight, self.training.done, self.training.steps, over=_RAMP)
            loss = loss + weight * losses[labelled:].mean()
        away = (self.network.head.weight[:classes] - self._began_CD).square().sum(dim=1).mean()
        self.training.step(loss + self._settings.head_anchor * away)

    def finish(self) -> Network:
        """The network with a head of the features as they are, in eval mode."""
        assert self.training.is_done, "it has not learnt yet"
        head = self.network.head
        with torch.no_grad():
            head.weight.div_(self._std_D)
            head.bias.sub_(head.weight @ self._mean_D)
        return self.network.eval().requires_grad_(True)

    def _of_views(self, what: str, rows_B: Tensor) -> Tensor:
        """(B, D): of augmented views, new ones in each step where what is below the head learns. Else of a few that are
        made once: the sub-modules say the same of them in each step, and to ask them is nearly all the work."""
        rehearsal = self._rehearsal
        x, views = (rehearsal.x, self._views) if what == "rehearsal" else (rehearsal.unlabelled, self._of_unlabelled)
        if self._learns_below:
            return self._features(views.of(x[rows_B], self.training.done))
        made = self._made[what]
        number = self.training.done % _VIEWS[what]
        with torch.no_grad():
            while len(made) <= number:
                parts = torch.split(x, _ROWS)
                first = len(made) * len(parts)  # each part of each copy is changed in its own way
                of_parts = (views.of(part, first + place) for place, part in enumerate(parts))
                made.append(torch.cat([self._features(rows) for rows in of_parts]))
        return made[number][rows_B]

    def _standardise(self, head: nn.Linear) -> None:
        with torch.no_grad():
            head.bias.add_(head.weight @ self._mean_D)
            head.weight.mul_(self._std_D)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            rows = [self._features(x) for x in torch.split(self._rehearsal.x, _ROWS)]
        features = torch.cat(rows)
        return features.mean(dim=0), features.std(dim=0, correction=0).clamp_min(_LEAST_STD)

    def _features(self, x: Tensor) -> Tensor:
        return passed(self.network, x, self._precision)[1]

    def state(self) -> StateTree:
        return self.training.state()

    def load_state(self, state: StateTree) -> None:
        self.training.load_state(state)
