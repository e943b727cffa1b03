"""A network with one sub-module more, which says what it said before.

Yan, Xie, He 2021, "DER: Dynamically Expandable Representation for Class Incremental Learning", CVPR, arXiv:2103.16788,
section 3.2: a new feature extractor beside those that there are, and one classifier over the features of all,

    phi(x) = [phi_old(x), phi_new(x)],    logits = W phi(x) + b,    W = [W_old, 0]

Where we differ: the paper's classifier inherits the weights over the old features and draws all others; here no class
hears the new features before it has learnt to, so that growing alone changes nothing that is predicted.

Legend: O = width of the old features, N = width of the new ones, K = logit columns
"""

from __future__ import annotations

from typing import cast

import torch

from pipeline.backbones.backbone import Backbone
from pipeline.backbones.sub_modules import SubModules
from pipeline.network import Network, network_from_architecture
from pipeline.state import Json


def grown(network: Network, addition: Network, *, freeze_old: bool = False, freeze_new: bool = False) -> Network:
    """The network over the features of both, the old ones first; on the CPU, in the mode of `network`.

    The head is (K, O + N): over the old features, and in its bias, that of `network`, spare columns too; zero over the
    new ones. `addition`, for the same input, gives its body; its head, however many columns it has, is left behind.
    Where either has several sub-modules, they follow one another, and stay frozen if they were. `freeze_old`,
    `freeze_new`: from now on all of its sub-modules are. Both networks are left as they are, and share no tensor with
    the result.

    UserError where the network would have too many sub-modules or parameters.
    """
    assert network.spec == addition.spec, f"{addition.spec} is not {network.spec}"
    parts = [*_described(network.body, frozen=freeze_old), *_described(addition.body, frozen=freeze_new)]
    architecture = {**network.architecture, "backbone": SubModules.name, "options": {"parts": parts}}
    result = network_from_architecture(architecture, network.seed)
    for of_result, of_its in zip(result.body.bodies, [*network.body.bodies, *addition.body.bodies], strict=True):
        of_result.load_state_dict(of_its.state_dict())
    old = network.head
    with torch.no_grad():
        result.head.weight[:, : old.in_features] = old.weight.cpu()
        result.head.weight[:, old.in_features :] = 0
        result.head.bias.copy_(old.bias)
    return result.train(network.training)


def _described(body: Backbone, *, frozen: bool) -> list[dict[str, Json]]:
    """Its sub-modules as an architecture names them."""
    if not isinstance(body, SubModules):
        return [{"backbone": body.name, "options": body.resolved_options, "frozen": frozen}]
    parts = cast("list[dict[str, Json]]", body.resolved_options["parts"])
    return [{**part, "frozen": frozen or bool(part["frozen"])} for part in parts]
