"""Rows with given logits, for tests of losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.retention.term import ReplayRows, Rows


def incoming(logits_BK: Tensor, y: Sequence[int]) -> Rows:
    return Rows(y_B=torch.tensor(y), logits_BK=logits_BK, features_BD=torch.zeros(len(y), 1))


def replay(logits_BK: Tensor, y: Sequence[int], stored_BK: Tensor, columns: Sequence[int] | None = None) -> ReplayRows:
    return ReplayRows(
        y_B=torch.tensor(y),
        logits_BK=logits_BK,
        features_BD=torch.zeros(len(y), 1),
        stored_logits_BK=stored_BK,
        stored_columns_B=torch.tensor(columns if columns is not None else [stored_BK.shape[1]] * len(y)),
    )
