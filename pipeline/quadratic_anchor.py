"""Weights tied to where they stood, each by its own stiffness: the penalty that all of the EWC family share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.state import StateTree


class QuadraticAnchor:
    """strength / 2 * sum over i of F_i (theta_i - theta*_i)^2, with F and theta* frozen *together*.

    Nothing is held until `move` was called once. A parameter that grew has F = 0 on its new entries: no anchor there.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters  # live: the head is replaced when it grows
        self._stiffness: dict[str, Tensor] = {}
        self._place: dict[str, Tensor] = {}
        self.version = 0  # another one where other tensors are held; their values may change under the same

    @property
    def holds(self) -> bool:
        return bool(self._stiffness)

    @property
    def stiffness(self) -> Mapping[str, Tensor]:
        """F by parameter's name, empty before the first `move`. Not to be changed."""
        return self._stiffness

    def move(self, stiffness: Mapping[str, Tensor], at_most: float | None = None) -> None:
        """Anchor the weights where they stand now, with a copy of this stiffness, each entry cut to `at_most`."""
        if _shapes(stiffness) != _shapes(self._stiffness):  # of another network
            self._stiffness = {name: torch.empty_like(value) for name, value in stiffness.items()}
            self._place = {name: torch.empty_like(value) for name, value in stiffness.items()}
            self.version += 1
        for name, value in stiffness.items():
            _cut(self._stiffness[name].copy_(value.detach()), at_most)
            self._place[name].copy_(self._parameters[name].detach())

    def penalty(self, strength: float) -> Tensor:
        """The penalty as a differentiable scalar, one node in the graph."""
        parameters = [self._parameters[name] for name in self._stiffness]
        stiffness, place = list(self._stiffness.values()), list(self._place.values())
        return cast(Tensor, _Penalty.apply(strength, stiffness, place, *parameters))

    def grow(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._stiffness = grown(self._stiffness, shapes)
        self._place = grown(self._place, shapes)
        self.version += 1

    def state(self) -> StateTree:
        if not self.holds:
            return {}
        return {"stiffness": copies(self._stiffness), "place": copies(self._place)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._stiffness = placed(state.get("stiffness", {}), self._parameters)
        self._place = placed(state.get("place", {}), self._parameters)
        self.version += 1


class _Penalty(torch.autograd.Function):
    """Value and gradient in four passes over the weights; the ordinary graph takes a node and a copy for each step."""

    @staticmethod
    def forward(ctx: Any, strength: float, stiffness: list[Tensor], place: list[Tensor], *parameters: Tensor) -> Tensor:
        with torch.no_grad():
            away = torch._foreach_sub(parameters, place)
            force = torch._foreach_mul(away, stiffness)
            products = [torch.dot(a.reshape(-1), f.reshape(-1)) for a, f in zip(away, force, strict=True)]
            ctx.force, ctx.strength = force, strength
            return torch.stack(products).sum() * (strength / 2)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        return (None, None, None, *torch._foreach_mul(ctx.force, outer[0] * ctx.strength))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _cut(tensor: Tensor, at_most: float | None) -> Tensor:
    return tensor if at_most is None else tensor.clamp_(max=at_most)


def zeros(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A zero for each trained parameter."""
    return {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items() if p.requires_grad}


def grown(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors in their new shapes: old values in the leading rows, zero in the new ones."""
    result = dict(tensors)
    for name in tensors.keys() & shapes.keys():
        old = tensors[name]
        result[name] = old.new_zeros(shapes[name])
        result[name][: len(old)] = old
    return result


def copies(tensors: Mapping[str, Tensor]) -> StateTree:
    """For a state: copies, since what we hold changes in place with the next update."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def placed(tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """From a state: copies on the parameters' device, in the parameters' order, so that sums over them are the same."""
    return {name: tensors[name].detach().to(p.device, copy=True) for name, p in parameters.items() if name in tensors}
