from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

from pipeline.network import Network, build_network, choose_backbone, network_from_architecture
from pipeline.sample import InputSpec
from pipeline.settings import NetworkSettings
from pipeline.state import fingerprint
from pipeline.user_error import UserError

MNIST = InputSpec(kind="image", shape=(1, 28, 28))
TINY = InputSpec(kind="image", shape=(3, 8, 8))


def small(seed: int = 0, columns: int = 4) -> Network:
    return build_network(NetworkSettings(options={"hidden": [5]}, initial_columns=columns), TINY, seed)


def test_the_same_seed_gives_the_same_weights_and_leaves_torch_s_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = small(0), small(0), small(1)
    first.grow(8)
    second.grow(8)
    assert torch.equal(before, torch.get_rng_state())
    assert fingerprint(first.state_dict()) == fingerprint(second.state_dict())
    assert not torch.equal(first.body.layers[0].weight, other.body.layers[0].weight)  # type: ignore[index, union-attr]


def test_growth_keeps_old_columns_bit_for_bit() -> None:
    network = small()
    head = network.head
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before, _ = network(x)
    network.grow(8)
    assert network.head is head  # hooks on it stay
    assert (network.columns, head.out_features, head.weight.shape, head.bias.shape) == (8, 8, (8, 5), (8,))
    assert torch.equal(head.weight[:4], weight)
    assert torch.equal(head.bias[:4], bias)
    assert head.weight.requires_grad
    assert head.weight.is_leaf
    after, _ = network(x)
    torch.testing.assert_close(after[:, :4], before)
    assert head.weight[4:].abs().max() <= 5**-0.5  # torch's initialisation of a linear layer: uniform, 1 / sqrt(D)
    assert head.weight[4:].std() > 0.1


def test_growth_does_not_depend_on_the_way_to_it() -> None:
    straight, in_steps = small(), small()
    straight.grow(16)
    in_steps.grow(8)
    in_steps.grow(16)
    assert torch.equal(straight.head.weight[8:], in_steps.head.weight[8:])


def test_bytes_are_scaled_and_floats_pass() -> None:
    network = small()
    x = torch.arange(192, dtype=torch.uint8).reshape(1, 3, 8, 8)
    from_bytes, features_BD = network(x)
    from_floats, _ = network(x.float() / 255)
    torch.testing.assert_close(from_bytes, from_floats)
    assert features_BD.shape == (1, 5)
    assert x.max() == 191  # the caller's images are as they were


@pytest.mark.parametrize(
    ("kind", "shape", "backbone"),
    [
        ("image", (1, 28, 28), "mlp"),
        ("image", (3, 31, 31), "mlp"),
        ("image", (3, 32, 32), "resnet18"),
        ("image", (1, 16, 40), "mlp"),
        ("image", (3, 40, 5), "mlp"),  # resnet18 cannot take it
        ("image", (3, 500, 600), "resnet18"),
        ("vector", (64, 64, 64), "mlp"),
        ("text", (48,), "text_encoder"),
    ],
)
def test_auto(kind: Any, shape: tuple[int, ...], backbone: str) -> None:
    assert choose_backbone("auto", InputSpec(kind=kind, shape=shape)) == backbone


def test_auto_finds_a_backbone_for_whatever_image_comes_first() -> None:
    for shape in [(1, 1, 1), (3, 5, 40), (3, 40, 5), (1, 1, 9999), (3, 31, 64), (1, 32, 32)]:
        network = build_network(NetworkSettings(initial_columns=2), InputSpec(kind="image", shape=shape), 0)
        assert network(torch.zeros(2, *shape, dtype=torch.uint8))[0].shape == (2, 2)


@pytest.mark.parametrize(("kind", "shape"), [("vector", (4_000_000,)), ("image", (3, 4000, 4000))])
def test_samples_too_large_for_auto_name_the_way_out(kind: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"too many for network\.backbone auto .*: set a smaller input\.shape"):
        build_network(NetworkSettings(), InputSpec(kind=kind, shape=shape), 0)


def test_a_named_backbone_that_cannot_take_the_first_sample_says_so() -> None:
    with pytest.raises(UserError, match=r"images of 40x5 are too small for backbone 'resnet18': set input\.shape"):
        build_network(NetworkSettings(backbone="resnet18"), InputSpec(kind="image", shape=(3, 40, 5)), 0)


def test_rebuilt_from_its_architecture() -> None:
    network = small()
    network.grow(16)
    rebuilt = network_from_architecture(json.loads(json.dumps(network.architecture)))
    rebuilt.load_state_dict(network.state_dict())
    assert rebuilt.spec == network.spec
    assert rebuilt.architecture == network.architecture
    assert fingerprint(rebuilt.state_dict()) == fingerprint(network.state_dict())


def text_encoder(**encoder: Any) -> dict[str, Any]:
    """The change of an architecture that makes it this transformers config's."""
    return {
        "backbone": "text_encoder",
        "options": {"encoder": encoder},
        "input": {"kind": "text", "shape": [8]},
    }


GOOD: dict[str, Any] = {
    "backbone": "mlp",
    "options": {"hidden": [4]},
    "input": {"kind": "vector", "shape": [3]},
    "columns": 2,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "os.system"}, "unknown backbone 'os.system': use auto or one of mlp, "),
        ({"backbone": "auto"}, "unknown backbone 'auto'"),
        ({"backbone": 3}, "not the architecture of a network"),
        ({"columns": "7"}, "not the architecture of a network"),
        ({"columns": 0}, "cannot have 0 logit columns"),
        ({"columns": 10**18}, "cannot have 1000000000000000000 logit columns"),
        ({"columns": 2**30}, "would have 5,368,709,136 parameters, more than 2,147,483,648"),
        ({"columns": -1}, "cannot have -1 logit columns"),
        ({"columns": 10**12}, "cannot have 1000000000000 logit columns"),
        ({"columns": True}, "not the architecture of a network"),
        ({"options": {"hidden": [2**24, 2**24]}}, "parameters, more than 2,147,483,648"),
        ({"options": {"hidden": [2**62]}}, r"network.options.hidden.0 of backbone 'mlp': Input should be less than"),
        ({"options": {"hidden": [-1]}}, r"network.options.hidden.0 of backbone 'mlp': Input should be greater than"),
        ({"options": {"hidden": [4] * 100}}, "network.options.hidden of backbone 'mlp'"),
        ({"options": {"hiden": [4]}}, "network.options.hiden of backbone 'mlp': Extra inputs are not permitted"),
        ({"input": {"kind": "sound", "shape": [3]}}, "not the architecture of a network"),
        ({"input": {"kind": "image", "shape": [3]}}, r"no shape of image: \(3,\)"),
        ({"input": {"kind": "vector", "shape": [2**20, 2**20]}}, "holds more than 268435456 values"),
        ({"input": {"kind": "vector", "shape": [-3]}}, "no shape of vector"),
        ({"input": {"kind": "vector", "shape": [1] * 100_000}}, "no shape of vector"),
        ({"input": {"kind": "vector", "shape": [True]}}, "no shape of vector"),
        ({"input": {"kind": "vector", "shape": ["3"]}}, "no shape of vector"),
        (text_encoder(model_type="albert", num_hidden_groups=10**6), r"encoder with \(12, 1000000, 1\) layers, groups"),
        (text_encoder(model_type="albert", inner_group_num=97), r"encoder with \(12, 1, 97\) layers, groups"),
        (text_encoder(model_type="distilbert", n_layers=10**6), r"encoder with \(1000000, 1, 1\) layers, groups"),
        (
            text_encoder(model_type="bert", intermediate_size=2**50),
            "absurd sizes: intermediate_size 1125899906842624, at",
        ),
        (text_encoder(model_type="bert", hidden_size=-5), "absurd sizes"),
        (text_encoder(model_type="bert", hidden_size="x"), "no config of a bert text encoder"),
        (text_encoder(model_type="bert", hidden_act="os.system"), "no bert text encoder has this config"),
        (text_encoder(model_type="bert", num_attention_heads=0), "no bert text encoder has this config"),
        (text_encoder(model_type=["bert"]), "text encoder of type"),
        ({"input": {"kind": "text", "shape": [3]}}, "backbone 'mlp' takes image, vector, this stream holds text"),
    ],
)
def test_what_is_no_architecture_is_refused_before_anything_is_allocated(change: dict[str, Any], message: str) -> None:
    network_from_architecture(GOOD)
    with pytest.raises(UserError, match=message) as refused:
        network_from_architecture({**GOOD, **change})
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "ignored",
    [
        {"num_labels": 10**9},  # transformers would name each of them
        {"auto_map": {"AutoModel": "somebody/code--modeling.Model"}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"architectures": ["os.system"]},
        {"pruned_heads": {"0": [0]}},
    ],
)
def test_what_is_no_size_of_an_encoder_is_not_obeyed(ignored: dict[str, Any]) -> None:
    plain = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    built, other = (
        network_from_architecture({**GOOD, **text_encoder(model_type="bert", vocab_size=300, **plain, **more)})
        for more in (ignored, {})
    )
    assert fingerprint(built.state_dict()) == fingerprint(other.state_dict())


def test_weights_of_another_size_are_refused() -> None:
    network = network_from_architecture(GOOD)
    weights = dict(network.state_dict())
    again = network_from_architecture(GOOD, weights=weights)
    again.load_state_dict(weights)
    with pytest.raises(
        UserError, match=r"it has body\.layers\.0\.bias of shape \(5,\), they have .* shape \(4,\); use"
    ):
        network_from_architecture({**GOOD, "options": {"hidden": [5]}}, weights=weights)
    with pytest.raises(UserError, match=r"it has head\.bias of shape \(3,\), they have head\.bias of shape \(2,\)"):
        network_from_architecture({**GOOD, "columns": 3}, weights=weights)
    with pytest.raises(UserError, match=r"it has no body\.x, they have body\.x of shape \(\)"):
        network_from_architecture(GOOD, weights={**weights, "body.x": torch.tensor(1.0)})
    del weights["head.weight"]
    with pytest.raises(UserError, match=r"it has head\.weight of shape \(2, 4\), they have no head\.weight"):
        network_from_architecture(GOOD, weights=weights)
    normed = build_network(NetworkSettings(backbone="resnet18", options={"width": 2}), TINY, 0)
    network_from_architecture(normed.architecture, weights=normed.state_dict())


def test_refusals_allocate_nothing() -> None:
    """In a process that may take little more memory than it has: what is within our bounds, but not in the file."""
    script = """
import resource, torch
from pipeline.network import network_from_architecture
from pipeline.user_error import UserError

good = {"backbone": "mlp", "options": {"hidden": [4]}, "input": {"kind": "vector", "shape": [3]}, "columns": 2}
weights = dict(network_from_architecture(good).state_dict())
(now,) = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")]
resource.setrlimit(resource.RLIMIT_AS, ((now + 500_000) * 1024,) * 2)
try:
    torch.zeros(2**28)
    raise SystemExit("the limit does not hold")
except RuntimeError:
    pass
for change in ({"columns": 4 * 10**8}, {"options": {"hidden": [2**24]}}, {"options": {"hidden": [40_000, 40_000]}},
               {"columns": 10**12}, {"options": {"hidden": [2**24] * 64}}):
    try:
        network_from_architecture({**good, **change}, weights=weights)
        raise SystemExit(f"built {change}")
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert [line.startswith("the weights are not this architecture's") for line in lines] == [True] * 3 + [False] * 2


def test_an_architecture_that_lacks_a_part() -> None:
    with pytest.raises(UserError, match="not the architecture of a network \\('columns'\\)"):
        network_from_architecture({key: value for key, value in GOOD.items() if key != "columns"})


def test_heads_grow_alike_while_another_thread_builds_networks() -> None:
    """As it is where a version is made beside the training."""
    vector = InputSpec(kind="vector", shape=(4,))
    other = build_network(NetworkSettings(options={"hidden": [64] * 8}), vector, 0)
    stop = threading.Event()

    def build() -> None:
        while not stop.is_set():
            network_from_architecture(other.architecture, weights=other.state_dict())

    def grown() -> list[str]:
        networks = [build_network(NetworkSettings(options={"hidden": [64]}), vector, seed) for seed in range(4)]
        for columns in range(200, 300):
            for network in networks:
                network.grow(columns)
        return [fingerprint(network.state_dict()) for network in networks]

    alone, before = grown(), torch.get_rng_state()
    builder = threading.Thread(target=build)
    builder.start()
    try:
        beside = grown()
    finally:
        stop.set()
        builder.join()
    assert beside == alone
    assert torch.equal(torch.get_rng_state(), before)


def test_a_constructor_that_draws_without_being_built_leaves_torch_s_generator_alone() -> None:
    """RegNet's cannot do with shapes only: it is built on the CPU to count its parameters, too."""
    before = torch.get_rng_state()
    build_network(
        NetworkSettings(backbone="torchvision", options={"model": "regnet_y_400mf"}),
        InputSpec(kind="image", shape=(3, 32, 32)),
        0,
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_a_single_row_is_normalised_by_running_statistics() -> None:
    network = build_network(NetworkSettings(backbone="resnet18", options={"width": 2}), TINY, 0)
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network.train()
    buffers = fingerprint(dict(network.named_buffers()))
    in_training, _ = network(x)
    in_training.sum().backward()
    assert fingerprint(dict(network.named_buffers())) == buffers
    assert all(module.training for module in network.modules())
    network.eval()
    assert torch.equal(network(x)[0], in_training)
    network.train()
    network(torch.cat([x, x + 0.1]))  # two rows: the batch's own statistics, and the running ones move
    assert fingerprint(dict(network.named_buffers())) != buffers
