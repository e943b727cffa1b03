"""Whether what an update would bring into the state is finite: looked at before anything of it is taken in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from pipeline.settings import OptimizerSettings

# The first number whose square float32 cannot hold. Steps below it never add up to a weight past float32's end.
_TOO_LONG = 2.0**64

# A replayed row's stored logits are compared by their squares, summed over columns and rows, and the gradients of that
# squared again.
_SQUARED_LOGITS = "the sum of the squared logits"
_LARGEST_SQUARED_LOGITS = 2.0**60

_SQUARED_GRADIENT = "the squared gradient"
_WEIGHTS = "the weights"

# {what: scalars on the device}
Found = dict[str, Sequence[Tensor]]


class NotFinite(ArithmeticError):
    """An update would not be finite, or would make later ones so; nothing of it was taken in.

    The text says which part, and what is wrong with it: "the loss is not finite".
    """

    def __init__(self, what: str, problem: str = "is not finite") -> None:
        super().__init__(f"{what} {problem}")


def of_the_loss(loss: Tensor, logits_BK: Tensor) -> Found:
    """After the forward pass. Logits are stored and later compared by their squares, and an infinite one need not show
    in the loss. A huge one would make every later update infinite that replays it."""
    return {"the loss": [loss.detach()], _SQUARED_LOGITS: [logits_BK.detach().square().sum()]}


def of_the_step(
    parameters: Iterable[Tensor],
    taken: Mapping[str, Mapping[str, Tensor]],
    statistics: Sequence[Tensor],
    settings: OptimizerSettings,
) -> Found:
    """Between backward pass and step: the parameters' gradients, what retention terms take ({term: squares}), the batch
    norms' statistics, and the weights where the step depends on them."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    found: Found = {_SQUARED_GRADIENT: torch._foreach_norm([p.grad for p in trained if p.grad is not None])}
    for name, squares in taken.items():
        found[f"the squared gradient of single rows ({name})"] = torch._foreach_max(list(squares.values()))
    if statistics:
        found["the running statistics"] = torch._foreach_norm(list(statistics), math.inf)
    if settings.weight_decay:
        found[_WEIGHTS] = torch._foreach_norm([parameter.detach() for parameter in trained])
    return found


def gradient_norm(values: Mapping[str, Sequence[float]], settings: OptimizerSettings) -> float:
    """Of all parameters together, from what `of_the_step` found; 0 without any. `NotFinite` where the step would be too
    long."""
    length = norm = math.hypot(*values.get(_SQUARED_GRADIENT, ()))
    if length >= _TOO_LONG:
        raise NotFinite(_SQUARED_GRADIENT)
    if settings.max_gradient_norm is not None:
        length = min(length, settings.max_gradient_norm)
    length += settings.weight_decay * math.hypot(*values.get(_WEIGHTS, ()))
    if settings.learning_rate * length >= _TOO_LONG:
        raise NotFinite("the squared step")
    return norm


def read(found: Found) -> dict[str, list[float]]:
    """The scalars as numbers. Waits for the device, once: on CUDA this is the one place in an update that does."""
    if not found:
        return {}
    scalars = flat(found)
    # on the CPU, single scalars are read faster than put together
    on_cpu = scalars[0].device.type == "cpu"
    return numbered(found, [scalar.item() for scalar in scalars] if on_cpu else torch.stack(scalars).tolist())


def flat(found: Found) -> list[Tensor]:
    """The scalars in their order."""
    return [scalar for of_it in found.values() for scalar in of_it]


def numbered(found: Found, numbers: Iterable[float]) -> dict[str, list[float]]:
    """The numbers of `flat`, as they were found."""
    following = iter(numbers)
    return {what: list(islice(following, len(of_it))) for what, of_it in found.items()}


def check(values: Mapping[str, Sequence[float]]) -> None:
    """`NotFinite` with the first that is none."""
    for what, numbers in values.items():
        if not all(map(math.isfinite, numbers)):
            raise NotFinite(what)
    if max(values.get(_SQUARED_LOGITS, (0.0,))) >= _LARGEST_SQUARED_LOGITS:
        raise NotFinite(_SQUARED_LOGITS, "is too large")
