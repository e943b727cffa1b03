"""A body of several: what it refuses, and that what is frozen stays as it is whatever is asked of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.backbones.sub_modules import SubModules
from pipeline.network import Network, network_from_architecture
from pipeline.user_error import UserError

MLP: dict[str, Any] = {"backbone": "mlp", "options": {"hidden": [5]}}
RESNET: dict[str, Any] = {"backbone": "resnet18", "options": {"width": 4}}


def network(*parts: dict[str, Any], kind: str = "image", shape: tuple[int, ...] = (1, 8, 8)) -> Network:
    return network_from_architecture(
        {
            "backbone": "sub_modules",
            "options": {"parts": list(parts)},
            "input": {"kind": kind, "shape": list(shape)},
            "columns": 3,
        }
    )


def images(rows: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_features_stand_side_by_side_in_the_order_of_the_parts() -> None:
    built = network(RESNET, MLP, MLP).eval()
    assert isinstance(built.body, SubModules)
    assert built.body.width == 32 + 5 + 5
    assert built.body.prefers_bfloat16
    assert not network(MLP).body.prefers_bfloat16
    _, features_BD = built(images())
    apart = [body(images().float() / 255) for body in built.body.bodies]
    torch.testing.assert_close(features_BD, torch.cat(apart, dim=1))
    assert not torch.equal(apart[1], apart[2])  # each was drawn for itself


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "network.options.parts of backbone 'sub_modules'"),
        ([MLP] * 65, "network.options.parts of backbone 'sub_modules'"),
        ([{"backbone": "os.system"}], "unknown backbone 'os.system'"),
        ([{"backbone": "text_encoder"}], "backbone 'text_encoder' takes text, this stream holds image"),
        ([{"backbone": "mlp", "options": {"hidden": [0]}}], r"network.options.hidden.0 of backbone 'mlp'"),
        ([{"backbone": "sub_modules", "options": {"parts": [MLP]}}], "a sub-module is not made of sub_modules itself"),
        ([{**MLP, "frozen": "perhaps"}], "network.options.parts.0.frozen of backbone 'sub_modules'"),
        ([{"backbone": "mlp", "options": {"hidden": [2**24, 2**10]}}] * 2, "parameters, more than 2,147,483,648"),
    ],
)
def test_what_is_refused(parts: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        network(*parts)


def test_what_is_frozen_stays_so() -> None:
    built = network({**RESNET, "frozen": True}, RESNET)
    assert isinstance(built.body, SubModules)
    frozen, free = built.body.bodies
    for required in (True, False, True):
        built.train().requires_grad_(required)
        assert not any(module.training for module in frozen.modules())
        assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(module.training for module in free.modules())
    assert all(parameter.requires_grad for parameter in (*free.parameters(), *built.head.parameters()))
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    torch.autograd.backward(built(images())[0].square().sum())
    built(images(1))  # a single row in training
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert all(parameter.grad is not None for parameter in free.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in frozen.state_dict().items())
    assert not any(module.training for module in frozen.modules())
    assert all(module.training for module in free.modules())


def test_the_compact_kind_is_the_first_ones() -> None:
    built = network(MLP, RESNET)
    assert isinstance(built.body, SubModules)
    assert built.body.compact is built.body.bodies[0]
    assert built.body.compact.compact is built.body.compact
