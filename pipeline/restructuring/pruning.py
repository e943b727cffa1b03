"""A network with fewer channels, made of the one that has them all.

Liu, Li, Shen, Huang, Yan, Zhang 2017, "Learning Efficient Convolutional Networks through Network Slimming",
arXiv:1708.06519: channels are ranked by the scale |gamma| of their batch norm, over all layers at once, and a penalty
on the scales while the network learns makes the ranking mean something:

    loss + penalty * sum of |gamma|                                                                     equation 1

Where a network has shortcuts, what is added up must have as many channels: each group of such layers (a stage) keeps
the mean share of what its batch norms would keep.

Where we differ: within a stage a channel's rank is the mean |gamma| over all batch norms that it passes. Networks
without batch norms (perceptrons, encoders of texts) keep the same share of every layer; channels are ranked by the L1
norm of their weights (Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710).

Which channels hang together and where they are cut out is `torch_pruning`'s work (Fang et al. 2023, "DepGraph: Towards
Any Structural Pruning", CVPR, arXiv:2301.12900).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.backbones.backbone import Backbone
from pipeline.network import Network, keyed_initialisation, network_from_architecture

Ranking = Literal["scale", "random"]


def pruned(network: Network, share: float, *, ranking: Ranking = "scale", seed: int = 0) -> Network:
    """A network without this share (0 to 1) of the channels, with the weights of those that stay; on the CPU, in eval
    mode. `network` is left as it is. One whose body cannot be described with fewer channels comes back whole.

    `ranking` random: as many of each layer, but any, keyed by the seed: to compare with.
    """
    assert 0 < share < 1, f"no share of channels: {share}"
    smaller = copy.deepcopy(network).cpu().float().eval().requires_grad_(True)
    if smaller.body.measured_options is None:
        return smaller
    with torch.enable_grad(), keyed_initialisation(seed, "restructuring/pruning"):  # a random ranking draws from it
        _cut(smaller, share, ranking)
    options = smaller.body.measured_options
    weights = smaller.state_dict()
    rebuilt = network_from_architecture({**network.architecture, "options": options}, network.seed, weights=weights)
    rebuilt.load_state_dict(weights)
    return rebuilt.eval()


def scale_penalty(body: Backbone) -> Tensor:
    """Sum of |gamma| over its batch norms; zero where it has none."""
    scales = [norm.weight.abs().sum() for norm in _batch_norms(body.modules())]
    return torch.stack(scales).sum() if scales else torch.zeros(())


def _cut(network: Network, share: float, ranking: Ranking) -> None:
    import torch_pruning  # takes a second, and only jobs need it

    importance = torch_pruning.importance
    has_scales = any(True for _ in _batch_norms(network.body.modules()))
    ranked = importance.BNScaleImportance() if has_scales else importance.GroupMagnitudeImportance(p=1)
    pruner = torch_pruning.pruner.BasePruner(
        network,
        torch.ones((2, *network.spec.shape), dtype=torch.int32 if network.spec.kind == "text" else None),
        importance=importance.RandomImportance() if ranking == "random" else ranked,
        pruning_ratio=_share_of_heads(network.body, share),
        pruning_ratio_dict=_shares(network.body, share),
        ignored_layers=[network.head],
        num_heads=dict(network.body.attention_heads),
        prune_head_dims=True,
        output_transform=_logits,
    )
    pruner.step()


def _share_of_heads(body: Backbone, share: float) -> float:
    """The share that leaves each head a whole number of channels; without heads the share itself."""
    sizes = {projection.out_features // heads for projection, heads in body.attention_heads.items()}
    if not sizes:
        return share
    size = min(sizes)
    kept = max(1, round((1 - share) * size)) / size
    return 1 - kept - 1e-6  # the library rounds down what stays


def _shares(body: Backbone, share: float) -> dict[nn.Module, float]:
    """{layer: the share that it loses}: one channel stays at least. Of all the convolutions' channels it is `share`, in
    a stage the mean of its layers."""
    of_stages = [[norm.weight.detach().abs() for norm in _batch_norms(stage)] for stage in body.stages]
    scales = torch.cat([scale for stage in of_stages for scale in stage]) if of_stages else torch.empty(0)
    if not len(scales):
        layers = () if body.attention_heads else (each for each in body.modules() if isinstance(each, nn.Linear))
        return {layer: min(share, 1 - 1 / layer.out_features) for layer in layers}
    rank = torch.empty_like(scales)
    rank[scales.argsort(stable=True)] = torch.arange(len(scales), dtype=scales.dtype)
    lost = rank < round(share * len(scales))  # by rank, so that equal scales do not all go or all stay
    shares: dict[nn.Module, float] = {}
    begin = 0
    for stage, norms in zip(body.stages, of_stages, strict=True):
        size = sum(len(scale) for scale in norms)
        its_share = float(lost[begin : begin + size].float().mean())
        begin += size
        fewest = 1 / len(norms[0])  # a stage keeps one channel at least
        shares |= {layer: min(its_share, 1 - fewest) for layer in stage if isinstance(layer, nn.Conv2d)}
    return shares


def _batch_norms(modules: Iterable[nn.Module]) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    for module in modules:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield module


def _logits(answer: tuple[Tensor, Tensor]) -> Tensor:
    return answer[0]
