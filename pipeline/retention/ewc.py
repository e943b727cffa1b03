"""Online EWC: one anchor for the whole past, its Fisher a fading sum.

    between anchors:    F_new = mean over the incoming rows since the last anchor of (d log p(y|x) / d theta)^2
    at an anchor:       F* <- gamma * F* + F_new,  theta* <- theta
    loss:               strength / 2 * sum over i of gamma * F*_i (theta_i - theta*_i)^2

    Schwarz, Luketina, Czarnecki, Grabska-Barwinska, Teh, Pascanu, Hadsell 2018, "Progress & Compress: A scalable
    framework for continual learning", arXiv:1805.06370, section "Online EWC"; the penalty of Kirkpatrick et al. 2017,
    arXiv:1612.00796, equation 3.

Where we differ:
- Nobody tells where a task ends. The anchor moves on a new class, drift and an adoption, but no sooner than
  `min_records` after the last one: each anchor adds a whole F_new, however few rows it was taken over, and classes
  that come together would count once each. (So the first classes of a stream, on random weights, set none.)
- F_new is taken during training, on the weights of each moment, not in a second pass over a task's data; its labels
  are the true ones (the empirical Fisher).
- strength * gamma * F* is cut to `max_stiffness` for each weight, as in `ewc_pp` and for the same reason.
- New columns of a grown head have no anchor: F* = 0 there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pipeline.quadratic_anchor import QuadraticAnchor, copies, grown, placed, zeros
from pipeline.retention.term import Change, ReplayRows, RetentionTerm, RowGradients, Rows
from pipeline.settings_section import Section, fixed
from pipeline.state import StateTree


class OnlineEwc(RetentionTerm):
    """Online EWC, no draw."""

    name: ClassVar[str] = "ewc"
    anchors = True

    class Config(Section):
        strength: float = fixed(30.0, gt=0, why="lambda of the papers: weight of the penalty")
        max_stiffness: float | None = fixed(
            10.0,
            gt=0,
            why="strength * gamma * F* of a weight is cut to this: keep it below 2 / learning rate; none: no cut",
        )
        gamma: float = fixed(0.9, gt=0, le=1, why="what one anchor leaves of the Fisher before it")
        min_records: int = fixed(500, ge=1, why="the anchor stands for at least this many records")

    def __init__(self, config: Section, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(config, parameters)
        assert isinstance(config, self.Config)
        self._config = config
        self._new = zeros(parameters)  # F_new: the mean over the batches since the last anchor, weighed by their rows
        self._batch: Mapping[str, Tensor] = {}  # F of the update under way, until its rows are known
        self._anchor = QuadraticAnchor(parameters)  # F* and theta*
        self._records_since_anchor = 0

    def on_change(self, change: Change) -> None:
        if self._records_since_anchor < self._config.min_records:
            return
        fisher = self._new
        if self._anchor.holds:
            old = self._anchor.stiffness
            fisher = {name: self._config.gamma * old[name] + new for name, new in self._new.items()}
        self._anchor_at(fisher)

    def on_adoption(self, fisher: Mapping[str, Tensor]) -> None:
        """One Fisher for the whole past, which was of other weights."""
        self._new = zeros(self.parameters)
        self._anchor_at({name: fisher[name] for name in self._new})

    def _anchor_at(self, fisher: Mapping[str, Tensor]) -> None:
        cap = self._config.max_stiffness
        self._anchor.move(fisher, at_most=None if cap is None else cap / (self._config.strength * self._config.gamma))
        torch._foreach_zero_(list(self._new.values()))
        self._records_since_anchor = 0

    @property
    def needs_row_gradients(self) -> bool:
        return True

    @property
    def work(self) -> Hashable | None:
        return self._anchor.version

    def loss(self, incoming: Rows, replays: tuple[ReplayRows, ...]) -> Mapping[str, Tensor]:
        if not self._anchor.holds:
            return {}
        return {"penalty": self._anchor.penalty(self._config.strength * self._config.gamma)}

    def after_backward(self, row_gradients: RowGradients | None) -> None:
        assert row_gradients is not None, "ewc asked for them"
        self._batch = self.takes(row_gradients)

    def after_update(self, rows: int) -> None:
        self._records_since_anchor += rows
        # The mean over all rows so far moves towards the batch's by the batch's share of them.
        torch._foreach_lerp_(
            list(self._new.values()), [self._batch[name] for name in self._new], rows / self._records_since_anchor
        )
        self._batch = {}

    def grow(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._new = grown(self._new, shapes)
        self._anchor.grow(shapes)

    def state(self) -> StateTree:
        return {
            "new": copies(self._new),
            "anchor": self._anchor.state(),
            "records_since_anchor": self._records_since_anchor,
        }

    def load_state(self, state: StateTree) -> None:
        self._new = placed(cast(Mapping[str, Tensor], state["new"]), self.parameters)
        self._anchor.load_state(cast(Mapping[str, Any], state["anchor"]))
        self._records_since_anchor = cast(int, state["records_since_anchor"])
