"""EWC++: weights that mattered stay where they were.

    every batch:    F <- a * F_batch + (1 - a) * F,     F_batch = mean over incoming rows of (d log p(y|x) / d theta)^2
    at an anchor:   F* <- F,  theta* <- theta
    loss:           strength / 2 * sum over i of F*_i (theta_i - theta*_i)^2

    Chaudhry, Dokania, Ajanthan, Torr 2018, "Riemannian Walk for Incremental Learning: Understanding Forgetting and
    Intransigence", arXiv:1801.10112, equation 6 (EWC++; not the path integral). The penalty is that of
    Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", arXiv:1612.00796, equation 3.

Where we differ:
- Nobody tells where a task ends. The anchor (F* and theta* together) moves on a new class, drift and an adoption, and,
  if set, every `anchor_every_records` records.
- F starts at zero and is not corrected for that. So an anchor set by the very first classes, on weights that are
  still nearly random, pulls little: after n batches F is the average times 1 - (1 - a)^n. Before the first batch an
  anchor would hold nothing and is not set.
- Avalanche's RWalk defaults to a = 0.9; on batches of ten rows that forgets the old classes' F within two updates.
  With a = 0.001, F's half-life is ln(1/2) / ln(1 - a) = 693 batches, that is 6928 records at 10 a batch (about half a
  class pair of Split-MNIST).
- One step of gradient descent moves a weight past its anchor, further each time, where the penalty's curvature is above
  2 / learning rate. So strength * F* is cut to `max_stiffness` for each weight: with 10, learning rates up to 0.2 are
  safe. (Split-MNIST at learning rate 0.03 has F up to 0.14; uncut, strength 1000 diverged there.)
- F_batch is looked at in every `fisher_every`-th batch only, with the share that so many batches together would have
  had, 1 - (1 - a)^n: the same average, of fewer rows. Gradients of single rows cost more than the rest of an update
  where a network has many weights for few rows (ResNet-18 on a GPU: three times as much in every batch).
- New columns of a grown head have no anchor: F* = 0 there.
- p(y|x) is what the incoming rows' loss says it is: with `er_ace` the softmax over the batch's own classes and those
  not yet seen, so that columns of absent classes add nothing to F.
- `fisher: batch_mean` squares the mean gradient instead, as Avalanche's RWalk does; it is smaller by up to the number
  of rows and vanishes where rows disagree.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from pipeline.quadratic_anchor import QuadraticAnchor, copies, grown, placed, zeros
from pipeline.retention.term import Change, ReplayRows, RetentionTerm, RowGradients, Rows
from pipeline.settings_section import Section, fixed
from pipeline.state import StateTree


class EwcPlusPlus(RetentionTerm):
    """EWC++, no draw."""

    name: ClassVar[str] = "ewc_pp"
    anchors = True

    class Config(Section):
        strength: float = fixed(30.0, gt=0, why="lambda of the papers: weight of the penalty")
        max_stiffness: float | None = fixed(
            10.0, gt=0, why="strength * F* of a weight is cut to this: keep it below 2 / learning rate; none: no cut"
        )
        rate: float = fixed(
            0.001,
            gt=0,
            le=1,
            why="a of the paper: a batch's share in the running Fisher (0.001: half-life 693 batches)",
        )
        fisher: Literal["per_sample", "batch_mean"] = fixed(
            "per_sample", why="mean of the rows' squared gradients, or square of their mean gradient"
        )
        fisher_every: int = fixed(
            4, ge=1, formerly=1, why="batches from one look at the rows' gradients to the next; 1: every batch"
        )
        anchor_every_records: int | None = fixed(
            None, ge=1, why="the anchor also moves when it stood for this many records; none: only on changes"
        )

    def __init__(self, config: Section, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(config, parameters)
        assert isinstance(config, self.Config)
        self._config = config
        self._share = 1.0 - (1.0 - config.rate) ** config.fisher_every
        self._running = zeros(parameters)  # F
        self._anchor = QuadraticAnchor(parameters)  # F* and theta*
        self._batches = 0  # so far: the next is looked at where `fisher_every` divides this
        self._records_since_anchor = 0

    def on_change(self, change: Change) -> None:
        if self._batches > 0:
            self.anchor_at(self._running)

    def anchor_at(self, fisher: Mapping[str, Tensor]) -> None:
        """Anchor the weights where they stand, with this Fisher (the running one, or one estimated elsewhere)."""
        cap = self._config.max_stiffness
        self._anchor.move(fisher, at_most=None if cap is None else cap / self._config.strength)
        self._records_since_anchor = 0

    def on_adoption(self, fisher: Mapping[str, Tensor]) -> None:
        """The running Fisher goes on from this one."""
        self._running = {name: fisher[name].detach().clone() for name in zeros(self.parameters)}
        self.anchor_at(self._running)

    @property
    def needs_row_gradients(self) -> bool:
        return self._batches % self._config.fisher_every == 0

    @property
    def work(self) -> Hashable | None:
        return self._anchor.version, self.needs_row_gradients

    def loss(self, incoming: Rows, replays: tuple[ReplayRows, ...]) -> Mapping[str, Tensor]:
        if not self._anchor.holds:
            return {}
        return {"penalty": self._anchor.penalty(self._config.strength)}

    def takes(self, row_gradients: RowGradients) -> Mapping[str, Tensor]:
        if self._config.fisher == "per_sample":
            return row_gradients.mean_of_squares()
        return row_gradients.square_of_mean()

    def after_backward(self, row_gradients: RowGradients | None) -> None:
        if row_gradients is not None:
            of_batch = self.takes(row_gradients)
            # F + a * (F_batch - F), for all parameters in one call
            running = list(self._running.values())
            torch._foreach_lerp_(running, [of_batch[name] for name in self._running], self._share)
        self._batches += 1

    def after_update(self, rows: int) -> None:
        self._records_since_anchor += rows
        period = self._config.anchor_every_records
        if period is not None and self._records_since_anchor >= period:
            self.anchor_at(self._running)

    def grow(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._running = grown(self._running, shapes)
        self._anchor.grow(shapes)

    def state(self) -> StateTree:
        return {
            "running": copies(self._running),
            "anchor": self._anchor.state(),
            "batches": self._batches,
            "records_since_anchor": self._records_since_anchor,
        }

    def load_state(self, state: StateTree) -> None:
        self._running = placed(cast(Mapping[str, Tensor], state["running"]), self.parameters)
        self._anchor.load_state(cast(Mapping[str, Any], state["anchor"]))
        self._batches = cast(int, state["batches"])
        self._records_since_anchor = cast(int, state["records_since_anchor"])
