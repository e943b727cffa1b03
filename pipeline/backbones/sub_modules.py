"""A body made of several: the sub-modules of a network that grew where its classes could not be learnt well enough.

Yan, Xie, He 2021, "DER: Dynamically Expandable Representation for Class Incremental Learning", CVPR, arXiv:2103.16788,
section 3.2: the features are those of all sub-modules side by side, phi(x) = [phi_1(x), ..., phi_t(x)].

Where we differ: the paper freezes the sub-modules of earlier steps; here each says for itself whether it is.

Legend: B = rows, D = width of the features, the sum of the sub-modules' widths
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from pipeline.backbones import chosen_backbone
from pipeline.backbones.backbone import Backbone
from pipeline.sample import InputSpec
from pipeline.settings_section import Section, fixed
from pipeline.state import Json
from pipeline.user_error import UserError

MOST_SUB_MODULES = 64


class SubModule(Section):
    """One of them."""

    backbone: str = fixed(why="a file of pipeline/backbones, but not this one")
    options: dict[str, Any] = fixed({}, why="options of that backbone")
    frozen: bool = fixed(False, why="it stays as it is: no gradients, and its batch norms learn no statistics")


class SubModules(Backbone):
    """The sub-modules' features side by side, in their order.

    A frozen one is in eval mode whatever the mode of the others, and its parameters never require gradients: whoever
    asks `requires_grad`, or for a gradient, passes it over (optimizer, retention terms, row gradients).
    """

    name = "sub_modules"
    kinds = frozenset({"image", "vector", "text"})

    class Config(Section):
        parts: tuple[SubModule, ...] = fixed(
            min_length=1, max_length=MOST_SUB_MODULES, why="the sub-modules, in their order"
        )

    def __init__(self, config: Section, spec: InputSpec) -> None:
        super().__init__(config, spec)
        assert isinstance(config, SubModules.Config)
        self._frozen = tuple(part.frozen for part in config.parts)
        bodies: list[Backbone] = []
        for part in config.parts:
            if part.backbone == self.name:  # the same sub-modules would have weights of other names
                raise UserError(f"a sub-module is not made of {self.name} itself: put its own parts in its place")
            backbone, options = chosen_backbone(part.backbone, part.options, spec)
            bodies.append(backbone(options, spec))
        self.parts = nn.ModuleList(bodies)
        self.width = sum(body.width for body in bodies)
        self.prefers_bfloat16 = any(body.prefers_bfloat16 for body in bodies)
        self._freeze()

    @property
    def bodies(self) -> tuple[Backbone, ...]:
        return tuple(cast("Iterable[Backbone]", self.parts))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([body(x) for body in self.parts], dim=1)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._freeze()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        super().requires_grad_(requires_grad)
        self._freeze()
        return self

    def load_pretrained(self) -> None:
        for body in self.bodies:
            body.load_pretrained()
        self._freeze()  # a checkpoint's modules may have taken the place of those that were made here

    @property
    def compact(self) -> Backbone:
        return self.bodies[0]

    @property
    def resolved_options(self) -> dict[str, Json]:
        """Each sub-module's own options resolved."""
        parts = [
            {"backbone": body.name, "options": body.resolved_options, "frozen": frozen}
            for body, frozen in zip(self.bodies, self._frozen, strict=True)
        ]
        return {"parts": cast(Json, parts)}

    def _freeze(self) -> None:
        for body, frozen in zip(self.bodies, self._frozen, strict=True):
            if frozen:
                body.eval().requires_grad_(False)
