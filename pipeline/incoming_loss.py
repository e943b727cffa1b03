"""The loss of the incoming rows: what a batch of the stream itself asks of the network.

    cross_entropy:  mean over rows of  -log softmax(f(x))[y]                        over all columns
    er_ace:         the same, over the columns of the batch's own classes and those not yet seen

The second is the asymmetric loss of Caccia, Aljundi, Asadi, Tuytelaars, Pineau, Belilovsky 2022, "New Insights on
Reducing Abrupt Representation Change in Online Continual Learning", ICLR, arXiv:2104.05025, section 4: the first
rows of a new class need not push the old classes' features away, since they are not compared with them. Old and new
are told apart by the replayed rows' cross-entropy, which runs over all columns; without such a replay nothing would.

Where we differ: the spare columns of the head stand for classes not yet seen, as the paper's fixed head has them.

Legend: B = rows, K = logit columns
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def incoming_loss(
    logits_BK: Tensor, y_B: Tensor, known: int | Tensor, kind: Literal["er_ace", "cross_entropy"]
) -> Tensor:
    """A scalar; B >= 1. `known`: classes that have a column, the batch's own included: the columns below it."""
    if kind == "er_ace":
        absent_K = torch.arange(logits_BK.shape[1], device=logits_BK.device) < known
        absent_K.index_fill_(0, y_B, False)
        logits_BK = logits_BK.masked_fill(absent_K, float("-inf"))
    return F.cross_entropy(logits_BK, y_B)
