"""The gate of `gate.py` without a network of its own: a logistic regression on what both teachers make of a row.

A teacher's features hold more than its head asks of them, also on whether a row is one of its own. There are few
records, and a whole encoder that learns the gate from them learns them by heart within a few passes; so many weights as
there are features do not, and are found in seconds. Frozen features and a linear model on them, after Alain and Bengio
2017, "Understanding Intermediate Layers Using Linear Classifier Probes", arXiv:1610.01644.

    g(x)  =  w . s(x) + b        s(x): both teachers' features and logits, in standard deviations of the unlabelled rows

    loss  =  E[softplus(g(u))] + E[softplus(-g(r))] + 1/2 E[softplus(g(o))] + decay ||w||^2

over unlabelled u, records r and stored old o, as in `gate.py`. It is convex: no order of rows, no seed, and nothing to
be kept of it in a state, since the same answers give the same weights.

Legend: B = rows, F = both teachers' features and logits
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.restructuring.refused import Refused
from pipeline.restructuring.teacher import Answers

_STORED_WEIGHT = 0.5
_ITERATIONS = 200
_LEAST_STD = 1e-6  # a feature that never changes says nothing


class FeatureGate:
    """Fitted when it is made."""

    def __init__(self, unlabelled_BF: Tensor, records_BF: Tensor, stored_BF: Tensor, decay: float) -> None:
        """`stored_BF`: may be of no row."""
        self._mean_F = unlabelled_BF.mean(dim=0)
        self._std_F = unlabelled_BF.std(dim=0).clamp(min=_LEAST_STD)
        self._free = unlabelled_BF.new_zeros(unlabelled_BF.shape[1] + 1, requires_grad=True)  # the weights, the shift
        parts = [self._standard(part_BF) for part_BF in (unlabelled_BF, records_BF, stored_BF)]
        optimizer = torch.optim.LBFGS([self._free], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            unlabelled_B, records_B, stored_B = (part_BF @ self._free[:-1] + self._free[-1] for part_BF in parts)
            loss = F.softplus(unlabelled_B).mean() + F.softplus(-records_B).mean()
            if len(stored_B):
                loss = loss + _STORED_WEIGHT * F.softplus(stored_B).mean()
            loss = loss + decay * self._free[:-1].square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        self._free.requires_grad_(False)

    def log_odds(self, heard_BF: Tensor) -> Tensor:
        """(B,) higher where a row is rather of the new classes."""
        return self._standard(heard_BF) @ self._free[:-1] + self._free[-1]

    def _standard(self, heard_BF: Tensor) -> Tensor:
        standard_BF = (heard_BF - self._mean_F) / self._std_F
        if not bool(standard_BF.isfinite().all()):  # before the search for weights, which would raise on it
            raise Refused("what a teacher makes of some rows is not finite: lower learning_rate")
        return standard_BF


def heard(old: Answers, specialist: Answers) -> Tensor:
    """What both teachers make of the same rows, (B, F)."""
    parts = [old.features_BD, specialist.features_BD, old.logits_BC, specialist.logits_BC]
    asked = [part for part in parts if part is not None]
    assert len(asked) == len(parts), "features were not asked for"
    return torch.cat(asked, dim=1)
