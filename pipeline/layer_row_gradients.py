"""What each kind of layer must keep of a call, and the gradient of each of its parameters for every single row.

Every gradient of a parameter is a sum, over the positions of a row, of something that the layer's input and the
gradient at its output determine. So both, caught in one ordinary backward pass, give the gradients of the rows apart.

Legend: R = rows, T = positions of a row (tokens, pixels), I/O = features in/out, C = channels, H/W = height/width,
G = groups, D = width of an embedding
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Row gradients are made for as many rows at once as fit in this many numbers: 16 MB in float32, about a CPU's cache; on
# a GPU 256 MB, so that it is not asked row by row.
NUMBERS_AT_ONCE = 1 << 22
NUMBERS_AT_ONCE_ON_CUDA = 1 << 26


def exact(x: Tensor) -> Tensor:
    """float32 at least: squares of bfloat16 gradients lose most of their digits, and small ones vanish."""
    return x if x.dtype == torch.float64 else x.float()


class RowGradient(ABC):
    """The gradients of one parameter, one for each row, from one call of one layer."""

    rows: int
    shape: tuple[int, ...]  # of the parameter
    device: torch.device

    @abstractmethod
    def of_rows(self, start: int, stop: int) -> Tensor:
        """Shape (stop - start, *shape)."""

    def sum(self) -> Tensor:
        """Sum over rows."""
        return sum_over_rows([self], squared=False)

    def sum_of_squares(self, factor: float) -> Tensor:
        """Sum over rows of the squared gradient, times the factor."""
        return sum_over_rows([self], squared=True).mul_(factor)


def sum_over_rows(calls: list[RowGradient], *, squared: bool) -> Tensor:
    """Sum over rows of a parameter's gradient (squared), which is itself the sum over all calls that used it."""
    first = calls[0]
    at_once = NUMBERS_AT_ONCE_ON_CUDA if first.device.type == "cuda" else NUMBERS_AT_ONCE
    chunk = max(1, at_once // max(1, prod(first.shape)))
    total: Tensor | None = None
    for start in range(0, first.rows, chunk):
        stop = min(start + chunk, first.rows)
        of_rows = first.of_rows(start, stop)
        for call in calls[1:]:
            of_rows = of_rows + call.of_rows(start, stop)
        part = (of_rows.square() if squared else of_rows).sum(0)
        total = part if total is None else total.add_(part)
    assert total is not None, "no rows"
    return total


class Direct(RowGradient):
    """Already one small gradient for each row: biases and the scales of normalisations."""

    def __init__(self, gradient: Tensor) -> None:
        self.gradient = gradient
        self.rows, self.shape, self.device = len(gradient), tuple(gradient.shape[1:]), gradient.device

    def of_rows(self, start: int, stop: int) -> Tensor:
        return self.gradient[start:stop]

    def sum(self) -> Tensor:
        return self.gradient.sum(0)

    def sum_of_squares(self, factor: float) -> Tensor:
        return self.gradient.square().sum(0).mul_(factor)


class OuterProducts(RowGradient):
    """Weight of a linear layer: row r has sum over t of g[r,t,:] outer x[r,t,:]."""

    def __init__(self, x_RTI: Tensor, g_RTO: Tensor) -> None:
        self.x_RTI, self.g_RTO = x_RTI, g_RTO
        self.rows, self.shape, self.device = len(x_RTI), (g_RTO.shape[2], x_RTI.shape[2]), x_RTI.device

    def of_rows(self, start: int, stop: int) -> Tensor:
        return self.g_RTO[start:stop].transpose(1, 2) @ self.x_RTI[start:stop]

    def sum(self) -> Tensor:
        return self.g_RTO.flatten(0, 1).T @ self.x_RTI.flatten(0, 1)

    def sum_of_squares(self, factor: float) -> Tensor:
        if self.x_RTI.shape[1] == 1:  # one outer product a row: its square is the outer product of the squares
            return (self.g_RTO[:, 0].square() * factor).T @ self.x_RTI[:, 0].square()
        return super().sum_of_squares(factor)


class Patches(RowGradient):
    """Weight of a convolution: the linear layer's rule over the patches that the kernel saw, group by group."""

    def __init__(self, layer: nn.Conv2d, x_RCHW: Tensor, g_ROHW: Tensor) -> None:
        self.layer, self.x_RCHW = layer, x_RCHW
        self.g_RGOT = g_ROHW.reshape(len(g_ROHW), layer.groups, -1, g_ROHW.shape[2] * g_ROHW.shape[3])
        self.rows, self.shape, self.device = len(x_RCHW), tuple(layer.weight.shape), x_RCHW.device

    def of_rows(self, start: int, stop: int) -> Tensor:
        products_RGOI = self.g_RGOT[start:stop] @ self._patches_RGIT(start, stop).transpose(2, 3)
        return products_RGOI.reshape(stop - start, *self.shape)

    def sum_of_squares(self, factor: float) -> Tensor:
        if self.g_RGOT.shape[3] == 1:
            g_GOR = self.g_RGOT[..., 0].permute(1, 2, 0)
            patches_GRI = self._patches_RGIT(0, self.rows)[..., 0].transpose(0, 1)
            return ((g_GOR.square() * factor) @ patches_GRI.square()).reshape(self.shape)
        return super().sum_of_squares(factor)

    def _patches_RGIT(self, start: int, stop: int) -> Tensor:
        layer, x_RCHW = self.layer, self.x_RCHW[start:stop]
        # The layer's own padding, left and right apart: padding="same" is lopsided for even kernels.
        padding = layer._reversed_padding_repeated_twice
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        if any(padding):
            x_RCHW = F.pad(x_RCHW, padding, mode=mode)
        # A view of every patch and one copy; F.unfold asks a GPU for each row apart.
        x_RCHW = x_RCHW.contiguous()
        rows, channels, *sides = x_RCHW.shape
        (kernel_H, kernel_W), dilation, stride = layer.kernel_size, layer.dilation, layer.stride
        out_H, out_W = (
            (side - gap * (kernel - 1) - 1) // step + 1
            for side, kernel, gap, step in zip(sides, (kernel_H, kernel_W), dilation, stride, strict=True)
        )
        of_row, of_channel, down, right = x_RCHW.stride()
        patches = x_RCHW.as_strided(
            (rows, channels, kernel_H, kernel_W, out_H, out_W),
            (of_row, of_channel, down * dilation[0], right * dilation[1], down * stride[0], right * stride[1]),
            x_RCHW.storage_offset(),
        )
        return patches.reshape(rows, layer.groups, -1, out_H * out_W)


class Lookups(RowGradient):
    """Weight of an embedding: row r has g[r,t,:] added at its token's line; all other lines stay zero."""

    def __init__(self, layer: nn.Embedding, ids_RT: Tensor, g_RTD: Tensor) -> None:
        if layer.padding_idx is not None:  # the padding token is not trained
            g_RTD = g_RTD.masked_fill((ids_RT == layer.padding_idx).unsqueeze(-1), 0)
        self.ids_RT, self.g_RTD = ids_RT, g_RTD
        self.rows, self.shape, self.device = len(ids_RT), tuple(layer.weight.shape), ids_RT.device

    def of_rows(self, start: int, stop: int) -> Tensor:
        lines, width = self.shape
        keys = self._keys_RT(start, stop) - start * lines
        of_rows = self.g_RTD.new_zeros((stop - start) * lines, width)
        return of_rows.index_add_(0, keys, self.g_RTD[start:stop].flatten(0, 1)).view(-1, lines, width)

    def sum(self) -> Tensor:
        return self.g_RTD.new_zeros(self.shape).index_add_(0, self.ids_RT.flatten(), self.g_RTD.flatten(0, 1))

    def sum_of_squares(self, factor: float) -> Tensor:
        # A token that stands twice in a row is summed before squaring; only lines that occur are ever made. Not by
        # torch.unique, which waits for the device to say how many there are: sorted, a run of equal keys has one place.
        keys, order = self._keys_RT(0, self.rows).sort(stable=True)
        place = torch.cat([keys.new_zeros(1), (keys[1:] != keys[:-1]).long()]).cumsum(0)
        g = self.g_RTD.new_zeros(len(keys), self.shape[1]).index_add_(0, place, self.g_RTD.flatten(0, 1)[order])
        lines = torch.zeros_like(keys).scatter_(0, place, keys % self.shape[0])  # of places left over: line 0, plus 0
        return g.new_zeros(self.shape).index_add_(0, lines, g.square().mul_(factor))

    def _keys_RT(self, start: int, stop: int) -> Tensor:
        row = torch.arange(start, stop, device=self.ids_RT.device).unsqueeze(1)
        return (self.ids_RT[start:stop] + row * self.shape[0]).flatten()


Keep = Callable[[Any, Tensor, int], Tensor]
Split = Callable[[Any, Tensor, Tensor], Iterator[tuple[str, RowGradient]]]


@dataclass(frozen=True)
class LayerKind:
    """`keep(layer, x of all rows, R)` at the forward pass; `split(layer, kept, g of R rows)` after the backward."""

    forwards: tuple[object, ...]  # the code that computes the output: a subclass that overrides it is another kind
    keep: Keep
    split: Split


def kind_of(layer: nn.Module) -> LayerKind | None:
    """The kind of a layer, or None where this file does not know how its output comes about."""
    if isinstance(layer, nn.Embedding) and (layer.sparse or layer.scale_grad_by_freq):
        return None
    forwards = tuple(getattr(type(layer), name, None) for name in ("forward", "_conv_forward"))
    return next((kind for kind in _KINDS if kind.forwards == forwards), None)


def _keep_rows(_layer: nn.Module, x: Tensor, rows: int) -> Tensor:
    # A copy: a view would hold the activations of all replayed rows through the whole backward pass.
    return x.detach() if len(x) == rows else x.detach()[:rows].clone()


def _keep_normalised(layer: nn.BatchNorm2d, x: Tensor, rows: int) -> Tensor:
    """Rows normalised by the statistics of the *whole* batch, as the layer did it."""
    x = exact(x.detach())
    if layer.training or layer.running_mean is None or layer.running_var is None:
        variance_C, mean_C = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
    else:
        variance_C, mean_C = layer.running_var, layer.running_mean
    per_channel = (-1, *[1] * (x.dim() - 2))
    return (x[:rows] - mean_C.view(per_channel)) * (variance_C + layer.eps).rsqrt().view(per_channel)


def _split_linear(layer: nn.Linear, x: Tensor, g: Tensor) -> Iterator[tuple[str, RowGradient]]:
    x_RTI, g_RTO = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
    yield "weight", OuterProducts(x_RTI, g_RTO)
    if layer.bias is not None:
        yield "bias", Direct(g_RTO[:, 0] if g_RTO.shape[1] == 1 else g_RTO.sum(1))


def _split_conv(layer: nn.Conv2d, x_RCHW: Tensor, g_ROHW: Tensor) -> Iterator[tuple[str, RowGradient]]:
    yield "weight", Patches(layer, x_RCHW, g_ROHW)
    if layer.bias is not None:
        yield "bias", Direct(g_ROHW.sum((2, 3)))


def _split_channels(_layer: nn.Module, normalised: Tensor, g: Tensor) -> Iterator[tuple[str, RowGradient]]:
    """Scale and shift of channel 1, all other positions summed."""
    yield "weight", Direct((g * normalised).flatten(2).sum(2) if g.dim() > 2 else g * normalised)
    yield "bias", Direct(g.flatten(2).sum(2) if g.dim() > 2 else g)


def _split_group_norm(layer: nn.GroupNorm, x: Tensor, g: Tensor) -> Iterator[tuple[str, RowGradient]]:
    yield from _split_channels(layer, F.group_norm(x, layer.num_groups, None, None, layer.eps), g)


def _split_layer_norm(layer: nn.LayerNorm, x: Tensor, g: Tensor) -> Iterator[tuple[str, RowGradient]]:
    shape = tuple(layer.normalized_shape)
    normalised = F.layer_norm(x, shape, None, None, layer.eps)
    yield "weight", Direct((g * normalised).reshape(len(g), -1, *shape).sum(1))
    if layer.bias is not None:
        yield "bias", Direct(g.reshape(len(g), -1, *shape).sum(1))


def _split_embedding(layer: nn.Embedding, ids: Tensor, g: Tensor) -> Iterator[tuple[str, RowGradient]]:
    yield "weight", Lookups(layer, ids.reshape(len(ids), -1).long(), g.reshape(len(g), -1, g.shape[-1]))


_KINDS = (
    LayerKind((nn.Linear.forward, None), _keep_rows, _split_linear),
    LayerKind((nn.Conv2d.forward, nn.Conv2d._conv_forward), _keep_rows, _split_conv),
    LayerKind((nn.BatchNorm2d.forward, None), _keep_normalised, _split_channels),  # the same code for 1d and 3d
    LayerKind((nn.GroupNorm.forward, None), _keep_rows, _split_group_norm),
    LayerKind((nn.LayerNorm.forward, None), _keep_rows, _split_layer_norm),
    LayerKind((nn.Embedding.forward, None), _keep_rows, _split_embedding),
)
