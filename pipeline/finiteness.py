"""Whether what an update would bring into the state is finite: looked at before anything of it is taken in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

# {what: scalars on the device}
Found = dict[str, Sequence[Tensor]]


class NotFinite(ArithmeticError):
    """An update would not be finite, or would make later ones so; nothing of it was taken in.

    The text says which part, and what is wrong with it: "the loss is not finite".
    """

    def __init__(self, what: str, problem: str = "is not finite") -> None:
        super().__init__(f"{what} {problem}")


def check_loss(loss: Tensor, logits_BK: Tensor, *, at_once: bool) -> Found:
    """What `check_update` is to look at too: nothing where it was looked at here.

    Logits are stored and later compared by their squares, and an infinite one need not show in the loss. A huge one
    would make every later update infinite that replays it.
    """
    found: Found = {"the loss": [loss.detach()], _SQUARED_LOGITS: [logits_BK.detach().square().sum()]}
    if not at_once:
        return found
    _check(found)
    return {}


def check_update(
    found: Found,
    parameters: Mapping[str, Tensor],
    taken: Mapping[str, Mapping[str, Tensor]],
    statistics: Sequence[Tensor],
    settings: OptimizerSettings,
) -> float:
    """The gradient's norm, between backward pass and step. `NotFinite` where what was found before, the parameters'
    gradients, what retention terms take ({term: squares}), the batch norms' statistics or the step's length is not.

    Everything is looked at together: this is the one place in an update where the CPU waits for a CUDA device.
    """
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    found["the squared gradient"] = torch._foreach_norm(gradients)
    for name, squares in taken.items():
        found[f"the squared gradient of single rows ({name})"] = torch._foreach_max(list(squares.values()))
    if statistics:
        found["the running statistics"] = torch._foreach_norm(list(statistics), math.inf)
    if settings.weight_decay:
        found["the weights"] = torch._foreach_norm([parameter.detach() for parameter in parameters.values()])
    values = _check(found)
    length = norm = math.hypot(*values["the squared gradient"])
    if length >= _TOO_LONG:
        raise NotFinite("the squared gradient")
    if settings.max_gradient_norm is not None:
        length = min(length, settings.max_gradient_norm)
    length += settings.weight_decay * math.hypot(*values.get("the weights", ()))
    if settings.learning_rate * length >= _TOO_LONG:
        raise NotFinite("the squared step")
    return norm


def _check(found: Found) -> dict[str, list[float]]:
    """The scalars as numbers; `NotFinite` with the first that is none. Waits for the device, once."""
    scalars = [scalar for of_it in found.values() for scalar in of_it]
    # on the CPU, single scalars are read faster than put together
    on_cpu = scalars[0].device.type == "cpu"
    numbers = iter([scalar.item() for scalar in scalars] if on_cpu else torch.stack(scalars).tolist())
    values = {what: list(islice(numbers, len(of_it))) for what, of_it in found.items()}
    for what, read in values.items():
        if not all(map(math.isfinite, read)):
            raise NotFinite(what)
    if max(values.get(_SQUARED_LOGITS, (0.0,))) >= _LARGEST_SQUARED_LOGITS:
        raise NotFinite(_SQUARED_LOGITS, "is too large")
    return values
