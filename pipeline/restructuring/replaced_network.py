"""A stream learner's state with another network in it: what a slow change hands back, whole, at its parent's offsets.

Legend: N = rows of the reservoir, K = logit columns
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network import Network, network_from_architecture
from pipeline.restructuring.labelled_rows import LabelledRows
from pipeline.retention import retention_terms
from pipeline.retention.term import RetentionTerm
from pipeline.row_gradients import RowGradientCapture
from pipeline.settings import LearnerSettings
from pipeline.state import Json, StateTree

_ROWS = 256  # of one pass


def with_network(parent: StateTree, network: Network, settings: LearnerSettings) -> StateTree:
    """The state that a learner adopts. `network` knows the parent's classes in the parent's columns.

    1. Spare columns say the same of every row: what the parent's said on average, above or below its known classes.
       Nobody taught them; a class that takes one begins where a new class began before.
    2. The logits stored in the reservoir are the new network's.
    3. The retention terms hold on to the new weights, with a Fisher estimated on the reservoir.
    4. Momenta are gone, since they belong to steps of other weights; the average begins at the new ones.

    All else is the parent's: class index, reservoir's rows and sampling, hold-outs, evaluation history, ids, counters.
    """
    learner = dict(cast(StateTree, parent["learner"]))
    names = cast("list[str]", cast(StateTree, learner["classes"])["names"])
    reservoir = dict(cast(StateTree, learner["reservoir"]))
    x, y_N = cast(Tensor, reservoir["x"]), cast(Tensor, reservoir["y"])
    network.eval()
    # 1.
    _set_spare_columns(network, _parent_network(learner), len(names), x)
    # 2.
    logits_NK = _logits(network, x)
    reservoir["logits"] = logits_NK
    reservoir["columns"] = torch.full((len(x),), network.columns, dtype=torch.int64)
    # 3.
    retention = _held_terms(network, cast("dict[str, StateTree]", learner["retention"]), x, y_N, settings)
    # 4.
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
    learner |= {
        "architecture": cast(Json, network.architecture),
        "network": cast(StateTree, weights),
        "momenta": {},
        "reservoir": reservoir,
        "retention": cast(StateTree, retention),
    }
    if learner.get("average"):
        floating = {name: tensor.clone() for name, tensor in weights.items() if tensor.is_floating_point()}
        average: StateTree = {"updates": 0, "weights": cast(StateTree, floating)}
        learner["average"] = average
    return {**parent, "learner": learner}


def reservoir_rows(learner: StateTree) -> LabelledRows:
    """The samples of a learner's reservoir with their labels."""
    names = cast("list[str]", cast(StateTree, learner["classes"])["names"])
    reservoir = cast(StateTree, learner["reservoir"])
    columns = cast("list[int]", cast(Tensor, reservoir["y"]).tolist())
    return LabelledRows(x=cast(Tensor, reservoir["x"]).numpy(), labels=tuple(names[column] for column in columns))


def _parent_network(learner: Mapping[str, object]) -> Network:
    weights = cast("dict[str, Tensor]", learner["network"])
    network = network_from_architecture(cast("dict[str, object]", learner["architecture"]), weights=weights)
    network.load_state_dict(weights)
    return network.eval()


def _logits(network: Network, x: Tensor) -> Tensor:
    """(N, K) on the CPU."""
    device = network.head.weight.device
    found = [torch.empty((0, network.columns))]
    with torch.no_grad():
        for rows in torch.split(x, _ROWS) if len(x) else ():
            found.append(network(rows.to(device))[0].float().cpu())
    return torch.cat(found)


def _set_spare_columns(network: Network, parent: Network, known: int, x: Tensor) -> None:
    """Levels of logits mean nothing to a softmax, only differences do: the spare ones keep theirs to the mean of the
    known ones. Without a sample nothing is known of either, and they stay as they are."""
    if known == network.columns or known == parent.columns or not len(x):
        return
    before_NK, now_NK = _logits(parent, x), _logits(network, x)
    above = before_NK[:, known:].mean() - before_NK[:, :known].mean()
    with torch.no_grad():
        network.head.weight[known:] = 0
        network.head.bias[known:] = (now_NK[:, :known].mean() + above).to(network.head.bias.device)


def _held_terms(
    network: Network, stored: Mapping[str, StateTree], x: Tensor, y_N: Tensor, settings: LearnerSettings
) -> dict[str, StateTree]:
    """The terms' states after they heard of the new weights."""
    parameters = dict(network.named_parameters())
    known = retention_terms()
    terms = {name: known[name](config, parameters) for name, config in sorted(settings.retention.items())}
    for name, term in terms.items():
        term.load_state(stored[name])
    with _trained(network):  # a term asks which parameters are
        fishers = _fishers(network, {name: term for name, term in terms.items() if term.anchors}, x, y_N, settings)
        for name, term in terms.items():
            term.on_adoption(fishers.get(name, {}))
    return {name: _on_cpu(term.state()) for name, term in terms.items()}


def _fishers(
    network: Network, terms: Mapping[str, RetentionTerm], x: Tensor, y_N: Tensor, settings: LearnerSettings
) -> dict[str, dict[str, Tensor]]:
    """Of each term: what it takes of the gradients of log p(y|x), the mean over the reservoir, in batches of the
    stream's size (a term that squares a batch's mean gradient gets as large a batch as ever). Running statistics
    normalise, so that rows do not mix; p is over all columns, since the reservoir has all classes."""
    device = network.head.weight.device
    fishers = {name: {p: torch.zeros_like(value) for p, value in network.named_parameters()} for name in terms}
    if not terms or not len(x):
        return fishers
    capture = RowGradientCapture(network)
    for rows, y_B in zip(torch.split(x, settings.batch_size), torch.split(y_N, settings.batch_size), strict=True):
        capture.start(rows=len(rows), scale=float(len(rows)))
        logits_BK, _ = network(rows.to(device))
        network.zero_grad(set_to_none=True)
        F.cross_entropy(logits_BK, y_B.to(device)).backward()  # type: ignore[no-untyped-call]
        gradients = capture.finish()
        for name, term in terms.items():
            for parameter, value in term.takes(gradients).items():
                fishers[name][parameter] += value.detach() * (len(rows) / len(x))
    return fishers


@contextmanager
def _trained(network: nn.Module) -> Iterator[None]:
    """Inside, every parameter has a gradient but those that the body keeps frozen."""
    network.requires_grad_(True)
    try:
        yield
    finally:
        network.zero_grad(set_to_none=True)


def _on_cpu(tree: StateTree) -> StateTree:
    moved: StateTree = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):
            moved[key] = value.detach().to("cpu", copy=True).contiguous()
        else:
            moved[key] = _on_cpu(cast(StateTree, value)) if isinstance(value, dict) else value
    return moved
