"""Labels guessed for rows without any, and rows mixed up with each other (mixup).

Berthelot, Carlini, Goodfellow, Papernot, Oliver, Raffel 2019, "MixMatch: A Holistic Approach to Semi-Supervised
Learning", NeurIPS, arXiv:1905.02249.

    guess      q = mean over K augmented views of what the network says of a row    section 3.2
    sharpen    q_c^(1/T) / sum over c of q_c^(1/T)    equation 7
    mix up     lambda' = max(lambda, 1 - lambda),  lambda ~ Beta(alpha, alpha)    equations 8, 9
               x' = lambda' x + (1 - lambda') x_2,  p' = lambda' p + (1 - lambda') p_2    equations 10, 11
    loss       CE of the labelled rows + ramped weight * mean over unlabelled rows of ||q - p||^2    equations 2 to 5

Where we differ:
- The network that guesses has only just met the new classes and knows the old ones by a few samples; the one that the
  stream has knows the old ones well. So a guess is put together of both (`put_together`).
- The unlabelled rows' loss may be a cross-entropy: a few passes teach more with it.
- The squared error is the sum over the classes, not their mean: its weight does not fall with every class that comes.

Legend: B = rows, K = augmented views of each, C = classes of the temporary network, O = old ones, its first columns
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.device import to_device

_LEAST = 1e-12  # below it a probability counts as this much: a class that both deny has a share, if none to speak of
_ALIGNMENTS = 20  # rounds: after fewer, sharp guesses are still uneven


def put_together(said_BC: Tensor, present_BO: Tensor, old: Tensor) -> Tensor:
    """(B, C): how likely a row is of the old classes together, and of each new one, as the temporary network says
    (`said_BC`, probabilities). Which of the old ones it is then, as it and the present network (`present_BO`) say
    together: the geometric mean. `old`: the old classes' columns, in the order of `present_BO`."""
    if not len(old):
        return said_BC
    of_old_BO = said_BC[:, old]
    both_BO = (of_old_BO * present_BO).clamp_min(_LEAST).sqrt()
    guessed_BC = said_BC.clone()
    guessed_BC[:, old] = of_old_BO.sum(dim=1, keepdim=True) * both_BO / both_BO.sum(dim=1, keepdim=True)
    return guessed_BC


def aligned(guessed_BC: Tensor) -> Tensor:
    """(B, C): the guesses of all rows, shared out so that each class has as much of them.

    Every row has the sum 1, every column nearly the same mean, but for a class that nobody guesses. For many rows,
    known to be of all classes about as often: a single one would be said to be of all of them alike.

    Distribution alignment (Berthelot, Carlini, Cubuk, Kurakin, Sohn, Zhang, Raffel 2020, "ReMixMatch", ICLR,
    arXiv:1911.09785, section 3.1) to an even distribution. Where we differ: over all rows at once, not by a running
    mean of batches, and over and over (Sinkhorn, Knopp 1967, "Concerning nonnegative matrices and doubly stochastic
    matrices", Pacific Journal of Mathematics 21)."""
    for _ in range(_ALIGNMENTS):
        guessed_BC = guessed_BC / guessed_BC.mean(dim=0, keepdim=True).clamp_min(_LEAST)
        guessed_BC = guessed_BC / guessed_BC.sum(dim=1, keepdim=True)
    return guessed_BC


def sharpened(guessed_BC: Tensor, temperature: float) -> Tensor:
    """Equation 7. Below 1 the likely becomes likelier."""
    raised_BC = guessed_BC.clamp_min(_LEAST) ** (1 / temperature)
    return raised_BC / raised_BC.sum(dim=1, keepdim=True)


def shares(generator: np.random.Generator, rows: int, alpha: float) -> Tensor:
    """(B,) lambda' of each row, from 0.5 to 1: it stays more itself than what it is mixed with."""
    drawn_B = generator.beta(alpha, alpha, rows)
    return torch.from_numpy(np.maximum(drawn_B, 1 - drawn_B).astype(np.float32))


def mixup(values: Tensor, order_B: Tensor, share_B: Tensor) -> Tensor:
    """(B, ...): each row's share of itself and the rest of row `order_B`; rows of inputs, or of targets."""
    share = share_B.reshape(-1, *[1] * (values.dim() - 1))
    return share * values + (1 - share) * values[order_B]


def mixed(generator: np.random.Generator, alpha: float, x: Tensor, target_BC: Tensor) -> tuple[Tensor, Tensor]:
    """All rows, of inputs or of features, with each other, and their targets likewise."""
    order = to_device(generator.permutation(len(x)), x.device)
    share = shares(generator, len(x), alpha).to(x.device)
    return mixup(x, order, share), mixup(target_BC, order, share)


def cross_entropies(logits_BC: Tensor, target_BC: Tensor) -> Tensor:
    """(B,): -sum over c of p_c log softmax(z)_c, for targets that may be mixed."""
    return -(target_BC * F.log_softmax(logits_BC, dim=1)).sum(dim=1)


def squared_error(logits_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Of the probabilities: the sum over the classes, the mean over the rows."""
    return (logits_BC.softmax(dim=1) - target_BC).square().sum(dim=1).mean()


def ramped(weight: float, done: int, steps: int, *, over: float) -> float:
    """The weight at this step: it rises on a line over the first share `over` of the steps, since first guesses are
    bad."""
    return weight * min(1.0, done / max(1.0, over * steps))
