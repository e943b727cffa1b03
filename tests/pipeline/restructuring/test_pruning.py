"""What is cut out is what was to be, and what is left says what the same network without the rest says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.network import Network, build_network, network_from_architecture
from pipeline.restructuring.pruning import pruned, scale_penalty
from pipeline.sample import InputSpec
from pipeline.settings import NetworkSettings
from pipeline.state import fingerprint

IMAGE = InputSpec(kind="image", shape=(3, 16, 16))
VECTOR = InputSpec(kind="vector", shape=(5,))
TEXT = InputSpec(kind="text", shape=(6,))
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 40,
    "dim": 24,
    "hidden_dim": 48,
    "n_layers": 1,
    "n_heads": 4,
    "max_position_embeddings": 6,
}


def built(backbone: str, spec: InputSpec, options: dict[str, Any]) -> Network:
    network = build_network(NetworkSettings(backbone=backbone, options=options, initial_columns=3), spec, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.1, 1, generator=generator)
                module.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
    return network.eval()


def rows(spec: InputSpec) -> Tensor:
    if spec.kind == "text":
        return torch.randint(1, 40, (4, *spec.shape), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    return torch.rand((4, *spec.shape), generator=torch.Generator().manual_seed(1))


def parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_channels_with_the_smallest_weights_go() -> None:
    """Two of four units of one hidden layer: what is left is the network with the other two switched off."""
    network = built("mlp", VECTOR, {"hidden": [4]})
    layer = next(module for module in network.body.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [0.1], [2.0], [0.2]]).expand(4, 5))
        network.head.weight.copy_(torch.tensor([[1.0, 0.1, 2.0, 0.2]]).expand(3, 4))
    smaller = pruned(network, 0.5)
    assert smaller.architecture["options"] == {"hidden": [2]}
    switched_off = network.head.weight.detach().clone()
    switched_off[:, [1, 3]] = 0
    _, features = network(rows(VECTOR))
    expected = features @ switched_off.T + network.head.bias
    torch.testing.assert_close(smaller(rows(VECTOR))[0], expected)


def test_channels_are_ranked_by_the_scale_of_their_batch_norm() -> None:
    """Channels whose scale and shift are zero say nothing: without them all is as before. Of the stages the shares are
    different ones, and each keeps the mean over its layers."""
    network = built("resnet18", IMAGE, {"width": 8})
    silent = {0: 6, 1: 4, 2: 16, 3: 38}  # of 8, 16, 32, 64 in each layer
    stages = network.body.stages
    total = lost = 0
    with torch.no_grad():
        for stage, modules in enumerate(stages):
            for norm in modules:
                if isinstance(norm, nn.BatchNorm2d):
                    norm.weight[: silent[stage]] = 0
                    norm.bias[: silent[stage]] = 0
                    total += norm.num_features
                    lost += silent[stage]
    smaller = pruned(network, lost / total)
    assert smaller.architecture["options"] == {"width": 64, "channels": [2, 12, 16, 26]}
    torch.testing.assert_close(smaller(rows(IMAGE))[0], network(rows(IMAGE))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "spec", "options"),
    [
        ("resnet18", IMAGE, {"width": 8}),
        ("mlp", VECTOR, {"hidden": [12, 9]}),
        ("text_encoder", TEXT, {"width": 16, "vocabulary": 40}),
        ("text_encoder", TEXT, {"width": 16, "vocabulary": 40, "share_layers": True}),
        ("text_encoder", TEXT, {"encoder": DISTILBERT}),
    ],
    ids=["resnet18", "mlp", "bert", "albert", "distilbert"],
)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.99])
def test_every_kind_becomes_smaller_and_is_a_network_as_any(
    backbone: str, spec: InputSpec, options: dict[str, Any], share: float
) -> None:
    network = built(backbone, spec, options)
    before = fingerprint(dict(network.state_dict()))
    smaller = pruned(network, share)
    assert parameters(smaller) < parameters(network)
    assert fingerprint(dict(network.state_dict())) == before  # left as it is
    assert smaller.columns == network.columns
    rebuilt = network_from_architecture(smaller.architecture)
    rebuilt.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(rebuilt.eval()(rows(spec))[0], smaller(rows(spec))[0])
    assert fingerprint(dict(pruned(network, share).state_dict())) == fingerprint(dict(smaller.state_dict()))


def test_a_pruned_network_can_be_pruned_again() -> None:
    assert parameters(pruned(pruned(built("resnet18", IMAGE, {"width": 8}), 0.5), 0.5)) > 0


def test_a_random_ranking_has_the_same_shapes_and_is_keyed() -> None:
    network = built("resnet18", IMAGE, {"width": 8})
    by_scale, one, other = pruned(network, 0.5), *(pruned(network, 0.5, ranking="random", seed=seed) for seed in (1, 2))
    assert by_scale.architecture == one.architecture == other.architecture
    prints = {fingerprint(dict(each.state_dict())) for each in (by_scale, one, other)}
    assert len(prints) == 3
    again = pruned(network, 0.5, ranking="random", seed=1)
    assert fingerprint(dict(again.state_dict())) == fingerprint(dict(one.state_dict()))
    state = torch.get_rng_state()
    pruned(network, 0.5, ranking="random", seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_that_no_options_describe_comes_back_whole() -> None:
    spec = InputSpec(kind="image", shape=(3, 32, 32))
    network = built("torchvision", spec, {"model": "mnasnet0_5"})
    assert fingerprint(dict(pruned(network, 0.5).state_dict())) == fingerprint(dict(network.state_dict()))


def test_the_penalty_is_the_sum_of_the_scales() -> None:
    network = built("resnet18", IMAGE, {"width": 2})
    expected = sum(m.weight.detach().abs().sum().item() for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert scale_penalty(network.body).item() == pytest.approx(expected, rel=1e-5)
    assert float(scale_penalty(built("mlp", VECTOR, {}).body)) == 0
