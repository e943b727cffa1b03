"""DER++: replay what the network said, and what was true.

    loss = alpha * E[ ||z' - h(x')||^2 ]  +  beta * E[ CE(y'', f(x'')) ]

    with (x', z') and (x'', y'') two independent draws from the reservoir. Buzzega, Boschini, Porrello, Abati,
    Calderara 2020, "Dark Experience for General Continual Learning: a Strong, Simple Baseline", arXiv:2004.07211,
    algorithm 2.

Where we differ: as `der` on the columns of the squared error. The cross-entropy takes all columns, the spare ones
too. The rest (two draws, rows stored un-augmented with this pass's logits, reservoir sampling) is the learner's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.retention.der import squared_logit_error
from pipeline.retention.term import ReplayRows, RetentionTerm, Rows
from pipeline.settings_section import Section, fixed


class DarkExperienceReplayPlusPlus(RetentionTerm):
    """DER++, two draws."""

    name: ClassVar[str] = "der_pp"
    replays_labels = True

    class Config(Section):
        alpha: float = fixed(0.5, ge=0, why="weight of the squared error to the stored logits (first draw)")
        beta: float = fixed(1.0, ge=0, why="weight of the cross-entropy to the stored labels (second draw)")

    def __init__(self, config: Section, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(config, parameters)
        assert isinstance(config, self.Config)
        self._alpha, self._beta = config.alpha, config.beta

    @property
    def draws(self) -> int:
        return 2

    @property
    def work(self) -> Hashable | None:
        return ()

    def loss(self, incoming: Rows, replays: tuple[ReplayRows, ...]) -> Mapping[str, Tensor]:
        if not replays:
            return {}
        first, second = replays
        return {
            "logits": self._alpha * squared_logit_error(first),
            "labels": self._beta * F.cross_entropy(second.logits_BK, second.y_B),
        }
