"""ER: replay what was true.

    loss = weight * E[ CE(y', f(x')) ]              (x', y') drawn from the reservoir

    Chaudhry, Rohrbach, Elhoseiny, Ajanthan, Dokania, Torr, Ranzato 2019, "On Tiny Episodic Memories in Continual
    Learning", arXiv:1902.10486, algorithm 1.

Where we differ: the paper (and Mammoth's `er`) takes one mean over the B incoming and the M drawn rows together; we
add two means, so that the incoming rows' likelihood keeps its scale beside other terms. With weight = M / B ours is
the paper's loss times (B + M) / B, so the paper's learning rate is divided by that. The default counts the past as
much as the present, however large the draw.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.retention.term import ReplayRows, RetentionTerm, Rows
from pipeline.settings_section import Section, fixed


class ExperienceReplay(RetentionTerm):
    """ER, one draw."""

    name: ClassVar[str] = "er"
    replays_labels = True

    class Config(Section):
        weight: float = fixed(1.0, ge=0, why="weight of the cross-entropy to the stored labels")

    def __init__(self, config: Section, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(config, parameters)
        assert isinstance(config, self.Config)
        self._weight = config.weight

    @property
    def draws(self) -> int:
        return 1

    @property
    def work(self) -> Hashable | None:
        return ()

    def loss(self, incoming: Rows, replays: tuple[ReplayRows, ...]) -> Mapping[str, Tensor]:
        if not replays:
            return {}
        return {"labels": self._weight * F.cross_entropy(replays[0].logits_BK, replays[0].y_B)}
