"""The incoming rows' gradients, each row's apart, from the one backward pass that the update makes anyway."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.layer_row_gradients import LayerKind, RowGradient, exact, kind_of, sum_over_rows

_LOG = logging.getLogger(__name__)


class _Call:
    """One call of one layer: what was kept of its input, and, once backward came by, the gradient at its output."""

    def __init__(self, name: str, layer: nn.Module, kind: LayerKind, kept: Tensor, rows: int) -> None:
        self.name, self.layer, self.kind, self.kept, self.rows = name, layer, kind, kept, rows
        self.g: Tensor | None = None

    def take(self, g: Tensor) -> None:
        g = g if len(g) == self.rows else g[: self.rows].clone()  # a view would hold the replayed rows' gradients too
        self.g = g if self.g is None else self.g + g

    def split(self) -> Iterator[tuple[str, RowGradient]]:
        assert self.g is not None
        kept = exact(self.kept) if self.kept.is_floating_point() else self.kept
        return self.kind.split(self.layer, kept, exact(self.g))


class RowGradientCapture:
    """Catches layer inputs and output gradients, so that squared per-row gradients cost no second pass.

    In one update:
    1. `start(rows, scale)`: the first `rows` rows of the next forward pass are the incoming ones, and their losses
       enter the total as a sum divided by `scale` (scale = rows for a mean);
    2. the first call of `module` is watched; later ones (the replay's, with `fused: false`) are not;
    3. the backward pass;
    4. `finish()` gives the RowGradients.

    Between `finish` and `start` there is no hook anywhere. The row gradients equal per-sample autograd's where rows do
    not mix. Batch norm in training mode mixes them: a row's gradient then also holds what the *other rows' losses*
    send to it through the batch's mean and variance, and misses what its own loss sends to the others.

    Known layers: Linear, Conv2d, BatchNorm, GroupNorm, LayerNorm, Embedding, called once or more in a pass, sharing
    parameters or not. Their inputs must have the rows in front, or 1 in front for all rows together (a table of
    positions). Parameters that are not trained are left out.

    The row gradients of other trained parameters cannot be seen: bare ones (a class token, an attention's in_proj),
    those used behind their layer's back (an attention's out_proj), and those of layers whose inputs have no rows in
    front (windows of images). They count as zero, so that nothing anchors them; one log message says how many.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._rows = 0
        self._batch: int | None = None
        self._scale = 1.0
        self._handles: list[RemovableHandle] = []
        self._calls: list[_Call] = []
        self._layers: list[tuple[str, nn.Module, LayerKind]] = []
        self._trained: dict[str, nn.Parameter] = {}  # by the name that `named_parameters` gives it
        self._names: dict[int, str] = {}  # of each trained parameter, by its id
        self._ever_called: set[str] = set()
        self._unseen: dict[str, str] = {}  # {parameter's name: its layer's type}; grows as passes are watched
        self._told: set[str] = set()
        self._find_layers()

    def start(self, rows: int, scale: float) -> None:
        """Watch the next call of the module."""
        assert rows > 0, "a batch has at least one incoming row"
        self.pause()
        self._rows, self._scale, self._batch, self._calls = rows, scale, None, []
        self._find_layers()  # anew each time: the head may have grown
        self._handles = [
            self._module.register_forward_pre_hook(self._enter, with_kwargs=True),
            *(
                layer.register_forward_hook(partial(self._catch, name, kind), with_kwargs=True)
                for name, layer, kind in self._layers
            ),
            self._module.register_forward_hook(self._leave),
        ]

    def pause(self) -> None:
        """Watch no further call. The end of the module's first call does it by itself."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def finish(self) -> CapturedRowGradients:
        """After the backward pass. May be asked once for each `start`."""
        self.pause()
        calls = [call for call in self._calls if call.g is not None]
        assert calls, "finish() comes after a forward and a backward pass"
        self._calls = []
        self._find_used_behind_their_back()
        self._tell_unseen()
        return CapturedRowGradients(calls, self._names, self._trained, self._unseen, self._rows, self._scale)

    def _find_layers(self) -> None:
        self._layers, self._trained, self._names = [], {}, {}
        for name, layer in self._module.named_modules():
            trained = {
                f"{name}.{local}" if name else local: parameter
                for local, parameter in layer._parameters.items()
                if parameter is not None and parameter.requires_grad
            }
            if not trained:
                continue
            for parameter_name, parameter in trained.items():
                if id(parameter) not in self._names:  # two layers may share one
                    self._names[id(parameter)] = parameter_name
                    self._trained[parameter_name] = parameter
            kind = kind_of(layer)
            if kind is None:
                self._cannot_see(layer)
            else:
                self._layers.append((name, layer, kind))

    def _cannot_see(self, layer: nn.Module) -> None:
        for parameter in layer._parameters.values():
            if parameter is not None and parameter.requires_grad:
                self._unseen.setdefault(self._names[id(parameter)], type(layer).__name__)

    def _enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._batch = len(args[0] if args else next(iter(kwargs.values())))
        assert self._rows <= self._batch, f"{self._rows} incoming rows in a batch of {self._batch}"

    def _leave(self, _module: nn.Module, _args: tuple[Any, ...], _output: object) -> None:
        self.pause()

    def _catch(
        self, name: str, kind: LayerKind, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Tensor | None:
        if not output.requires_grad or self._batch is None:
            return None
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        replaced: Tensor | None = None
        if len(x) == 1 and self._batch > 1:
            # One for all rows: autograd would sum the rows' gradients, the incoming and the replayed, where the output
            # is broadcast. Expanding it here moves that sum behind our hook and changes no value.
            x = x.expand(self._batch, *x.shape[1:])
            replaced = output = output.expand(self._batch, *output.shape[1:])
        if len(x) != self._batch:  # its rows cannot be told apart
            self._cannot_see(layer)
            return None
        call = _Call(name, layer, kind, kind.keep(layer, x, self._rows), self._rows)
        self._calls.append(call)
        self._ever_called.add(name)
        output.register_hook(call.take)
        return replaced

    def _find_used_behind_their_back(self) -> None:
        """A layer that was never called, and whose parameters have gradients all the same."""
        for name, layer, _ in self._layers:
            if name not in self._ever_called and any(p.grad is not None for p in layer.parameters(recurse=False)):
                self._cannot_see(layer)

    def _tell_unseen(self) -> None:
        new = [name for name in self._unseen if name not in self._told]
        if not new:
            return
        self._told.update(new)
        unseen = sum(self._trained[name].numel() for name in self._unseen)
        share = unseen / sum(parameter.numel() for parameter in self._trained.values())
        _LOG.warning(
            "gradients of single rows cannot be seen for %s of the network's weights (%.1f%%; %s of a %s is the "
            "first): retention terms that need them (ewc_pp, ewc) do not anchor these",
            f"{unseen:,}",
            100 * share,
            new[0],
            self._unseen[new[0]],
        )


class CapturedRowGradients:
    """Gradients of the incoming rows' log-likelihood; each of the two means is computed when first asked for."""

    def __init__(
        self,
        calls: list[_Call],
        names: Mapping[int, str],
        trained: Mapping[str, nn.Parameter],
        unseen: Iterable[str],
        rows: int,
        scale: float,
    ) -> None:
        self._calls, self._names, self._trained, self._rows, self._scale = calls, names, trained, rows, scale
        self._unseen = frozenset(unseen)  # also where some of a parameter's calls were watched: the rest is missing
        self._mean_of_squares: dict[str, Tensor] | None = None
        self._square_of_mean: dict[str, Tensor] | None = None

    def mean_of_squares(self) -> Mapping[str, Tensor]:
        """Mean over rows of (d log p(y|x) / d theta)^2; zero for a parameter that took no part or cannot be seen."""
        if self._mean_of_squares is None:
            # The loss is -log p / scale: the row's gradient is -scale times what was caught, and the sign goes.
            factor = self._scale**2 / self._rows

            def mean_of_squares(calls: list[RowGradient]) -> Tensor:
                if len(calls) == 1:
                    return calls[0].sum_of_squares(factor)
                return sum_over_rows(calls, squared=True).mul_(factor)

            self._mean_of_squares = self._of_each_parameter(mean_of_squares)
        return self._mean_of_squares

    def square_of_mean(self) -> Mapping[str, Tensor]:
        """(mean over rows of d log p(y|x) / d theta)^2; zero for a parameter that took no part or cannot be seen."""
        if self._square_of_mean is None:

            def square_of_mean(calls: list[RowGradient]) -> Tensor:
                total = calls[0].sum()
                for call in calls[1:]:
                    total = total + call.sum()
                return (total * (self._scale / self._rows)).square_()

            self._square_of_mean = self._of_each_parameter(square_of_mean)
        return self._square_of_mean

    @torch.no_grad()
    def _of_each_parameter(self, reduce: Callable[[list[RowGradient]], Tensor]) -> dict[str, Tensor]:
        with _without_autocast(self._calls[0].kept.device):
            found: dict[str, list[RowGradient]] = {}
            for call in self._calls:
                for local_name, row_gradient in call.split():
                    parameter = call.layer._parameters[local_name]
                    if parameter is not None and parameter.requires_grad:
                        name = self._names[id(parameter)]
                        if name not in self._unseen:
                            found.setdefault(name, []).append(row_gradient)
            return {
                name: reduce(found[name]) if name in found else torch.zeros_like(parameter)
                for name, parameter in self._trained.items()
            }


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products of float32 must stay in float32."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
