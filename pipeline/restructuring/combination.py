"""How two teachers who were never compared are put into one row of logits.

    plain        z_c = centred logits of the teacher who knows class c (their mean, where both do)
    calibrated   z_c = a_t z*_t,c, and + b on the old teacher's side: scales and a shift that fit the reservoir best,
                 after Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599
    gated        z_c = log p(new) + log softmax(a_2 z_2)_c   for a class of the specialist
                 z_c = log p(old) + log softmax(a_1 z_1)_c   for one of the old teacher
                 p(new) = 1 - p(old) = sigmoid(a g - b), of the gate's log odds g (`gate.py`)

Gated, neither teacher is heard on whether a row is its own at all, which it was never taught. Log probabilities below
-12 count as -12: a student that regresses on them would else learn mostly by how much the impossible is impossible.

The scales and the shift minimise the cross-entropy on the reservoir's samples, classes weighing the same, plus 0.001
log^2 a for each scale, which holds them where the samples are told apart without any error.

Where the learner's own network is heard too (it has all classes, from replay), the student is taught the mean of what
both say, as probabilities: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network",
arXiv:1503.02531, section 1, of an ensemble's. The teachers saw all records of their classes, but never each other's;
the learner's network saw both, but of the old ones few.

Legend: B = rows, O = classes of the old teacher, N = classes of the specialist, K = the student's classes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.restructuring.distillation import centred, side_by_side

_HELD = 0.001
_ITERATIONS = 200
_LEAST_LOG = -12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """Of the old teacher's logits, the specialist's, and the gate's; and what is added on the old classes' side."""

    old: float = 1.0
    specialist: float = 1.0
    gate: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """Of the same rows."""

    old_BO: Tensor
    specialist_BN: Tensor
    gate_B: Tensor | None  # log odds; None: there is no gate


class Combination:
    """Of one old teacher and one specialist."""

    def __init__(self, old_columns: Sequence[int], specialist_columns: Sequence[int], classes: int) -> None:
        """The student's column of each of a teacher's classes."""
        self._old_columns, self._specialist_columns = list(old_columns), list(specialist_columns)
        self._classes = classes

    def logits(self, said: Said, scales: Scales) -> Tensor:
        """(B, K), each row's mean zero."""
        values = (scales.old, scales.specialist, scales.gate, scales.shift)
        return self._combined(said, *torch.tensor(values, device=said.old_BO.device))

    def _combined(self, said: Said, *scales: Tensor) -> Tensor:
        old, specialist, gate, shift = scales
        if said.gate_B is None:
            old_BO = centred(said.old_BO) * old + shift
            specialist_BN = centred(said.specialist_BN) * specialist
        else:
            for_new_B1 = (gate * said.gate_B - shift).unsqueeze(1)
            old_BO = F.logsigmoid(-for_new_B1) + F.log_softmax(said.old_BO * old, dim=1)
            specialist_BN = F.logsigmoid(for_new_B1) + F.log_softmax(said.specialist_BN * specialist, dim=1)
            old_BO, specialist_BN = old_BO.clamp(min=_LEAST_LOG), specialist_BN.clamp(min=_LEAST_LOG)
        both = [(old_BO, self._old_columns), (specialist_BN, self._specialist_columns)]
        return centred(side_by_side(both, self._classes))

    def fitted(self, said: Said, y_B: Tensor) -> Scales:
        """The scales that fit these rows best. In float64 on the CPU: it is a few hundred rows."""
        rows = Said(
            old_BO=said.old_BO.double().cpu(),
            specialist_BN=said.specialist_BN.double().cpu(),
            gate_B=None if said.gate_B is None else said.gate_B.double().cpu(),
        )
        weight_B = 1 / torch.bincount(y_B, minlength=self._classes)[y_B].double()
        weight_B = weight_B / weight_B.sum()
        free = torch.zeros(4, dtype=torch.float64, requires_grad=True)  # the scales' logarithms, the shift
        optimizer = torch.optim.LBFGS([free], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits_BK = self._combined(rows, *torch.cat([free[:3].exp(), free[3:]]))
            loss = (F.cross_entropy(logits_BK, y_B, reduction="none") * weight_B).sum()
            loss = loss + _HELD * free[:3].square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        old, specialist, gate, shift = free.detach().tolist()
        return Scales(old=math.exp(old), specialist=math.exp(specialist), gate=math.exp(gate), shift=shift)


def mean_of_both(taught_BK: Tensor, parent_BK: Tensor, parent_weight: float) -> Tensor:
    """(B, K) logits, each row's mean zero: of w p_parent + (1 - w) p_taught, the softmaxes of both."""
    probabilities = (1 - parent_weight) * F.softmax(taught_BK, dim=1) + parent_weight * F.softmax(parent_BK, dim=1)
    return centred(probabilities.log().clamp(min=_LEAST_LOG))
