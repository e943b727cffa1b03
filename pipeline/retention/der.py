"""DER: replay what the network said about a sample when it came.

    loss = alpha * E[ ||z' - h(x')||^2 ]            (x', z') drawn from the reservoir, z' stored as x' came

    Buzzega, Boschini, Porrello, Abati, Calderara 2020, "Dark Experience for General Continual Learning: a Strong,
    Simple Baseline", arXiv:2004.07211, algorithm 1; the norm is taken as in the authors' code, as the mean over the
    logits.

Where we differ: the head grows. The squared error is taken over the S columns that a row was stored with and divided
by the constant 10, so at ten columns it is the authors' `mse_loss`, and a growth does not change its weight.

Legend: B = rows, K = logit columns now, S = logit columns when a row was stored
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.retention.term import ReplayRows, RetentionTerm, Rows
from pipeline.settings_section import Section, fixed

LOGIT_ERROR_DIVISOR = 10.0  # the number of classes in the papers' benchmarks


def squared_logit_error(replay: ReplayRows) -> Tensor:
    """Mean over rows of the squared error on each row's stored columns, divided by 10. A scalar."""
    logits_BK, stored_BK = replay.logits_BK, replay.stored_logits_BK
    if replay.stored_columns_B is not None:
        column_K = torch.arange(logits_BK.shape[1], device=logits_BK.device)
        logits_BK = logits_BK * (column_K < replay.stored_columns_B.unsqueeze(1))  # what was stored is zero there
    return F.mse_loss(logits_BK, stored_BK, reduction="sum") / (LOGIT_ERROR_DIVISOR * len(logits_BK))


class DarkExperienceReplay(RetentionTerm):
    """DER, one draw."""

    name: ClassVar[str] = "der"

    class Config(Section):
        alpha: float = fixed(0.2, ge=0, why="weight of the squared error to the stored logits")

    def __init__(self, config: Section, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(config, parameters)
        assert isinstance(config, self.Config)
        self._alpha = config.alpha

    @property
    def draws(self) -> int:
        return 1

    @property
    def work(self) -> Hashable | None:
        return ()

    def loss(self, incoming: Rows, replays: tuple[ReplayRows, ...]) -> Mapping[str, Tensor]:
        if not replays:
            return {}
        return {"logits": self._alpha * squared_logit_error(replays[0])}
