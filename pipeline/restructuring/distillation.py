"""What a student is asked to take over from its teachers.

Deep Model Consolidation (Zhang, Zhang, Ghosh, Li, Tasci, Heck, Zhang, Kuo 2020, "Class-incremental Learning via Deep
Model Consolidation", WACV, arXiv:1903.07864, section 3.2): teacher t knows the classes C_t, and says z_t.

    centred    z*_t,c = z_t,c - mean over C_t of z_t              an absolute level means nothing to a softmax
    target     z*_c   = mean of z*_t,c over the teachers that know class c
    loss       mean over rows and classes of (y_c - z*_c)^2       "double distillation"

The alternatives, to compare with; all but the first come beside the loss above, since no head learns from them:

    temperature   T^2 KL(softmax(z* / T) || softmax(y / T))
        Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2
    hints         1/2 ||f_t - r_t(f)||^2 of the features f, through a regressor r_t that is learnt along
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, "FitNets", arXiv:1412.6550, equation 3
    attention     1/2 sum over layers of ||Q / |Q| - Q_t / |Q_t| ||_2,  Q = sum over channels of the squared activations
        Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", arXiv:1612.03928, equation 2
    relational    Huber(d_ij, d_t,ij) + 2 Huber(cos_ijk, cos_t,ijk),  d_ij = |f_i - f_j| / mean, cos_ijk the angle at j
        Park, Kim, Lu, Cho 2019, "Relational Knowledge Distillation", arXiv:1904.05068, equations 5 to 8; the weight
        of the angles is theirs

Where we differ:
- The paper has two teachers with disjoint classes. Versions that are consolidated by hand may share some: these take
  the mean.
- FitNets sums over the features; here it is their mean, so that the weight of the hint does not depend on the width.
- With two teachers, hints, attention and relations are the mean over both.

Legend: B = rows, C = classes of one teacher, K = the student's classes, D = width of the features, P = positions of a
layer (pixels, tokens)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Distillation = Literal["dmc", "temperature", "hints", "attention", "relational"]

_ANGLES_WEIGHT = 2.0
_LEAST = 1e-12  # below it a distance or a norm counts as none: its direction is nobody's


def centred(logits_BC: Tensor) -> Tensor:
    """Each row less its mean."""
    return logits_BC - logits_BC.mean(dim=1, keepdim=True)


def side_by_side(of_teachers: Sequence[tuple[Tensor, Sequence[int]]], classes: int) -> Tensor:
    """[(what a teacher says (B, C), the student's column of each of its classes), ...] -> (B, K).

    A class that several know takes the mean of what they say; each class must be known to one of them.
    """
    first, _ = of_teachers[0]
    total_BK = first.new_zeros((len(first), classes))
    knowing_K = first.new_zeros(classes)
    for said_BC, columns in of_teachers:
        index_C = torch.tensor(columns, dtype=torch.int64, device=first.device)
        assert said_BC.shape == (len(first), len(index_C)), f"{tuple(said_BC.shape)} for {len(index_C)} classes"
        total_BK[:, index_C] += said_BC
        knowing_K[index_C] += 1
    assert bool((knowing_K > 0).all()), "a class that no teacher knows"
    return total_BK / knowing_K


def squared_error(logits_BK: Tensor, target_BK: Tensor) -> Tensor:
    """DMC's: the mean over rows and classes. A scalar."""
    return F.mse_loss(logits_BK, target_BK)


def temperature_divergence(logits_BK: Tensor, target_BK: Tensor, temperature: float) -> Tensor:
    """T^2 times the divergence of the softened softmaxes, the mean over rows: its gradient keeps its scale whatever T
    is, and tends to half that of the squared error above as T grows. A scalar."""
    log_student_BK = F.log_softmax(logits_BK / temperature, dim=1)
    log_teacher_BK = F.log_softmax(target_BK / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student_BK, log_teacher_BK, reduction="batchmean", log_target=True)


def hint_error(regressed_BD: Tensor, hint_BD: Tensor) -> Tensor:
    """Half the mean squared error. A scalar."""
    return F.mse_loss(regressed_BD, hint_BD) / 2


def attention_map(activations: Tensor) -> Tensor:
    """Where a layer looks: (B, C, H, W) or (B, P, D) -> (B, P), each row of length one."""
    if activations.dim() == 4:
        map_BP = activations.square().sum(dim=1).flatten(1)
    else:
        assert activations.dim() == 3, f"no positions in activations of shape {tuple(activations.shape)}"
        map_BP = activations.square().sum(dim=2)
    return F.normalize(map_BP, dim=1, eps=_LEAST)


def attention_error(maps: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """Of the maps of each layer: half the sum over layers of their distance, the mean over rows. A scalar."""
    distances = [_length(map_BP - taught_BP).mean() for map_BP, taught_BP in zip(maps, taught, strict=True)]
    return torch.stack(distances).sum() / 2


def relational_error(features_BD: Tensor, taught_BD: Tensor) -> Tensor:
    """Between the rows of one batch: distances of pairs and angles of triplets. A scalar; 0 for a single row."""
    if len(features_BD) < 2:
        return features_BD.sum() * 0
    distances = F.smooth_l1_loss(_distances(features_BD), _distances(taught_BD))
    angles = F.smooth_l1_loss(_angles(features_BD), _angles(taught_BD))
    return distances + _ANGLES_WEIGHT * angles


def _distances(features_BD: Tensor) -> Tensor:
    """(B, B) in units of their mean over pairs of two rows."""
    distances_BB = _length(features_BD[:, None] - features_BD[None])
    pairs = len(features_BD) * (len(features_BD) - 1)
    return distances_BB / (distances_BB.sum() / pairs).clamp(min=_LEAST)


def _angles(features_BD: Tensor) -> Tensor:
    """(B, B, B): at row j, between the directions to i and to k."""
    towards_BBD = F.normalize(features_BD[None] - features_BD[:, None], dim=2, eps=_LEAST)
    return torch.bmm(towards_BBD, towards_BBD.transpose(1, 2))


def _length(x: Tensor) -> Tensor:
    """Of the last dimension's vectors. Where one is zero its gradient is zero too, not NaN."""
    squared = x.square().sum(dim=-1)
    away = squared > _LEAST**2
    return torch.where(away, squared.where(away, torch.ones_like(squared)).sqrt(), torch.zeros_like(squared))
