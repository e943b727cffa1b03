"""The contract of a retention term: what an algorithm against forgetting may see and do in one update.

Legend: B = rows, K = logit columns now, S = logit columns when a row was stored, D = width of the features
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

from torch import Tensor, nn

from pipeline.settings_section import Section
from pipeline.state import StateTree


class Change(StrEnum):
    """What may move an anchor, since nobody tells where a task ends."""

    NEW_CLASS = "new_class"  # before the first update that holds it
    DRIFT = "drift"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of the update's one forward pass."""

    y_B: Tensor  # int64 logit columns
    logits_BK: Tensor
    features_BD: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRows(Rows):
    """A draw from the reservoir, beside what the network said when each row was stored."""

    stored_logits_BK: Tensor  # zero from column S on
    stored_columns_B: Tensor | None  # int64, S of each row (S <= K); None: K, of all of them


class RowGradients(Protocol):
    """Gradients of the incoming rows' log-likelihood, caught in the update's one backward pass.

    Both give {parameter's name: tensor of its shape}. Equal to per-sample autograd where rows do not mix.
    """

    def mean_of_squares(self) -> Mapping[str, Tensor]:
        """Mean over rows of (d log p(y|x) / d theta)^2: the empirical Fisher's diagonal."""

    def square_of_mean(self) -> Mapping[str, Tensor]:
        """(mean over rows of d log p(y|x) / d theta)^2, as Avalanche's RWalk takes it."""


class RetentionTerm(ABC):
    """One algorithm against forgetting. A file `pipeline/retention/NAME.py` holds exactly one subclass, named in
    `name` like its file; the settings choose it by that name and the contract test finds it by itself.

    In one update the learner calls, in this order:
    1. `on_change` for what was noticed before the update (a new class, drift);
    2. `loss`, once, with this term's slices of the one forward pass;
    3. `takes`, where it needs row gradients in this update;
    4. `after_backward`, once, when every parameter has its gradient (`changes_gradients`);
    5. `after_update`, when the optimizer has stepped.

    The learner may stop after 1, 2 or 3, where something is not finite: it loads the state from before 1 if there was
    a 1, and begins again with other rows (none at all, to see whether the replay is to blame). So 2 and 3 change
    nothing that lasts.
    """

    name: ClassVar[str]
    replays_labels: bool = False  # True: its loss tells old classes and new ones apart (`incoming_loss.py`)
    changes_gradients: bool = False  # True: `after_backward` may change gradients in place
    anchors: bool = False  # True: it holds weights where they were, and `on_adoption` gets a Fisher

    class Config(Section):
        """Settings of the term; frozen, keyword-only."""

    def __init__(self, config: Section, parameters: Mapping[str, nn.Parameter]) -> None:
        """`parameters` is live: name -> parameter of the network, head included, replaced when the head grows."""
        self.parameters = parameters

    @property
    def draws(self) -> int:
        """How many independent draws from the reservoir one update needs."""
        return 0

    @property
    def needs_row_gradients(self) -> bool:
        """Whether `takes` and `after_backward` get row gradients in this update; asked before `loss`, and again until
        `after_backward`."""
        return False

    @property
    def work(self) -> Hashable | None:
        """Stands for the work that `loss` and `takes` give a device. While it stays equal, slices of the same sizes
        make them compute the same from the same tensors, whose values may change in place; so the learner may have a
        CUDA device repeat it without asking (`cuda_graph.py`). None: they must be asked every time."""
        return None

    def on_change(self, change: Change) -> None:
        """The stream changed; an anchor may move."""

    def on_adoption(self, fisher: Mapping[str, Tensor]) -> None:
        """The weights were replaced by those of a restructured network, between two updates; nothing that was noted of
        the old ones holds of them. `fisher`: by parameter's name, what `takes` gives on the reservoir's samples with
        the new weights, their mean; empty where the term has no `anchors`. The network may have other parameters than
        the one of which `load_state` told."""

    def loss(self, incoming: Rows, replays: tuple[ReplayRows, ...]) -> Mapping[str, Tensor]:
        """Named scalar losses, to be added to the incoming rows' cross-entropy. `replays` has `draws` entries, or
        none while the reservoir is empty. Names need not carry the term's own; the learner prefixes them.

        May be empty while there is nothing to hold to (no replay, no anchor yet)."""
        return {}

    def takes(self, row_gradients: RowGradients) -> Mapping[str, Tensor]:
        """What `after_backward` will take of them into the state: the learner looks first whether it is finite."""
        return row_gradients.mean_of_squares()

    def after_backward(self, row_gradients: RowGradients | None) -> None:
        """Look at the gradients of `self.parameters`, or change them in place."""

    def after_update(self, rows: int) -> None:
        """The optimizer has stepped on `rows` incoming records."""

    def grow(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """The head grew: parameters in `shapes` have these new shapes, old values in the leading rows."""

    def state(self) -> StateTree:
        """All that is needed to go on bit for bit; keys without "/"."""
        return {}

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`."""
