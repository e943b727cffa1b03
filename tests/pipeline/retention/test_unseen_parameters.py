"""Default retention on networks of which row gradients see a part only, such as torchvision's ViT and Swin."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.backbones import backbones
from pipeline.backbones.backbone import Backbone
from pipeline.learner import Learner
from pipeline.sample import InputSpec
from pipeline.settings import LearnerSettings
from pipeline.settings_section import Section
from pipeline.state import fingerprint

SPEC = InputSpec(kind="image", shape=(1, 4, 4))


class Tokened(Backbone):
    """A vision transformer in small: bare class token and positions, and an attention."""

    name = "tokened"
    kinds = frozenset({"image"})

    def __init__(self, config: Section, spec: InputSpec) -> None:
        super().__init__(config, spec)
        self.patches = nn.Conv2d(1, 4, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Parameter(torch.zeros(1, 5, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.width = 4

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = self.patches(x).flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.token.expand(len(x), -1, -1), x_BTD], 1) + self.positions
        return cast(Tensor, self.norm(x_BTD + self.attention(x_BTD, x_BTD, x_BTD, need_weights=False)[0])[:, 0])


UNSEEN = ["token", "positions", *(f"attention.{name}" for name in ("in_proj_weight", "in_proj_bias"))]
UNSEEN += [f"attention.out_proj.{name}" for name in ("weight", "bias")]


@pytest.mark.parametrize("retention", [{"der_pp": {}, "ewc_pp": {}}, {"ewc": {"min_records": 8}}])
def test_it_learns_anchors_what_is_seen_and_goes_on_bit_for_bit(
    retention: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.backbones.backbones", lambda: {**backbones(), "tokened": Tokened})
    settings = LearnerSettings.model_validate(
        {"device": "cpu", "network": {"backbone": "tokened", "initial_columns": 2}, "retention": retention}
    )
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (8, 1, 4, 4), dtype=np.uint8) for _ in range(6)]
    learner, other = Learner(settings, SPEC), Learner(settings, SPEC)
    for number in range(4):
        learner.update(batches[number], ["a", "b", "abc"[number % 3], *"ababa"])  # c comes third: an anchor, and growth

    (message,) = [record.getMessage() for record in caplog.records]
    assert "gradients of single rows cannot be seen for 104 of the network's weights" in message
    of_terms = cast("dict[str, Any]", learner.state()["retention"])
    stiffness = cast("dict[str, Tensor]", of_terms["ewc" if "ewc" in retention else "ewc_pp"]["anchor"]["stiffness"])
    assert {name for name, value in stiffness.items() if not value.any()} == {f"body.{name}" for name in UNSEEN}

    other.load_state(learner.state())
    for batch in batches[4:]:
        learner.update(batch, [*"abcabcab"])
        other.update(batch, [*"abcabcab"])
    assert fingerprint(other.state()) == fingerprint(learner.state())
