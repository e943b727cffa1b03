"""What layers inside a network put out, taken in its own forward pass.

Legend: B = rows, C = channels, H/W = height/width, P = positions (tokens), D = width
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.network import Network


class Activations:
    """While it is open, the newest output of each named layer is held until it is `taken`."""

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self._layers = [network.get_submodule(name) for name in layers]
        self._handles: list[RemovableHandle] = []
        self._newest: list[Tensor | None] = [None] * len(layers)

    def __enter__(self) -> Self:
        for place, layer in enumerate(self._layers):

            def keep(_module: nn.Module, _args: object, output: object, place: int = place) -> None:
                self._newest[place] = _tensor_of(output)

            self._handles.append(layer.register_forward_hook(keep))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def taken(self) -> list[Tensor]:
        """Of the forward pass just made, in the order of the layers."""
        taken, self._newest = self._newest, [None] * len(self._layers)
        assert all(output is not None for output in taken), "a layer was not called"
        return [output for output in taken if output is not None]


def layers_with_positions(network: Network) -> list[str]:
    """The last layer of each number of positions: the end of each stage of a convolutional network, the last layer of
    an encoder of texts; none of a perceptron. Zagoruyko and Komodakis compare the ends of groups, too."""
    last: dict[tuple[int, ...], str] = {}
    handles = []

    def look(name: str) -> Any:
        def note(_module: nn.Module, _args: object, output: object) -> None:
            tensor = _tensor_of(output)
            if tensor is None:
                return
            if kind == "text" and tensor.dim() == 3 and tensor.shape[:2] == (1, *network.spec.shape):
                last[tuple(tensor.shape[1:2])] = name  # (B, P, D)
            elif kind == "image" and tensor.dim() == 4 and tensor.shape[2] * tensor.shape[3] > 1:
                last[tuple(tensor.shape[2:])] = name  # (B, C, H, W)

        return note

    training = network.training
    kind = network.spec.kind
    x = torch.zeros((1, *network.spec.shape), dtype=torch.int32 if kind == "text" else torch.float32)
    try:
        for name, module in network.body.named_modules(prefix="body"):
            handles.append(module.register_forward_hook(look(name)))
        with torch.no_grad():
            network.eval()(x.to(network.head.weight.device))
    finally:
        for handle in handles:
            handle.remove()
        network.train(training)
    return list(last.values())


def _tensor_of(output: object) -> Tensor | None:
    """Of what a layer returned: layers of transformers return tuples, or objects, with the states in front."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    states = getattr(output, "last_hidden_state", None)
    return states if isinstance(states, Tensor) else None
