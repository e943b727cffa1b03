"""A wide network that begins as a narrow one says nearly what that one says."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.network import Network, build_network
from pipeline.restructuring.grown_network import grown
from pipeline.restructuring.pruning import pruned
from pipeline.restructuring.warm_start import warm_start
from pipeline.sample import InputSpec
from pipeline.settings import NetworkSettings
from pipeline.state import fingerprint

SPEC = InputSpec(kind="vector", shape=(6,))
X = torch.randn((5, 6), generator=torch.Generator().manual_seed(0))


def built(hidden: list[int], columns: int, seed: int, spec: InputSpec = SPEC, **settings: Any) -> Network:
    options = settings or {"backbone": "mlp", "options": {"hidden": hidden}}
    return build_network(NetworkSettings(**options, initial_columns=columns), spec, seed)


def test_its_first_channels_are_the_newest_sub_module_s() -> None:
    first, second = built([4], 3, 0), built([2], 3, 1)
    present = grown(first, second)
    with torch.no_grad():
        present.head.weight[:, -2:] = torch.randn((3, 2), generator=torch.Generator().manual_seed(2))
    wide = built([8], 5, 3)
    drawn = wide.body.state_dict()["layers.0.weight"].clone()
    assert warm_start(wide, present, [0, 1, 2])
    weight = wide.body.state_dict()["layers.0.weight"]
    assert torch.equal(weight[:2], second.body.state_dict()["layers.0.weight"])
    assert torch.equal(weight[2:], drawn[2:])
    assert torch.equal(wide.head.weight[:3, :2], present.head.weight[:, -2:])
    assert torch.equal(wide.head.bias[:3], present.head.bias)


def test_of_the_same_width_it_says_what_the_newest_says() -> None:
    present, temporary = built([4], 3, 0), built([4], 3, 1)
    assert warm_start(temporary, present, [0, 1, 2])
    torch.testing.assert_close(temporary(X)[0], present(X)[0])


def test_a_wider_one_or_one_of_another_kind_changes_nothing() -> None:
    temporary = built([4], 3, 1)
    before = fingerprint(dict(temporary.state_dict()))
    assert not warm_start(temporary, built([5], 3, 0), [0, 1, 2])
    assert not warm_start(temporary, built([4, 4], 3, 0), [0, 1, 2])
    image = InputSpec(kind="image", shape=(1, 8, 8))
    resnet = built([], 3, 0, image, backbone="resnet18", options={"width": 2})
    assert not warm_start(temporary, resnet, [0, 1, 2])
    assert fingerprint(dict(temporary.state_dict())) == before


TEXT = InputSpec(kind="text", shape=(8,))


def encoder(seed: int) -> Network:
    options = {"vocabulary": 40, "layers": 1, "heads": 2, "width": 16}
    return built([], 3, seed, TEXT, backbone="text_encoder", options=options)


def test_an_encoder_begins_as_one_of_the_same_size_and_not_as_one_with_narrower_heads() -> None:
    """Of two heads of 4 both would come to lie in the first head of 8."""
    tokens = torch.tensor([[2, 5, 7, 3, 0, 0, 0, 0], [2, 9, 3, 0, 0, 0, 0, 0]])
    present, temporary = encoder(0), encoder(1)
    assert warm_start(temporary, present, [0, 1, 2])
    torch.testing.assert_close(temporary.eval()(tokens)[0], present.eval()(tokens)[0])
    narrow = pruned(present, 0.5)
    assert narrow.body.width < 16
    before = fingerprint(dict(temporary.state_dict()))
    assert not warm_start(temporary, narrow, [0, 1, 2])
    assert fingerprint(dict(temporary.state_dict())) == before
