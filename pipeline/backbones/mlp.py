"""A multi-layer perceptron over the flattened input, as in Lopez-Paz and Ranzato 2017 (arXiv:1706.08840): 2 x 100."""

from __future__ import annotations

import itertools
import math
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from pipeline.backbones.backbone import Backbone
from pipeline.sample import InputSpec
from pipeline.settings_section import Section, fixed
from pipeline.state import Json


class Mlp(Backbone):
    """Linear + ReLU per hidden layer; the last hidden layer's activations are the features."""

    name = "mlp"
    kinds = frozenset({"image", "vector"})

    class Config(Section):
        hidden: tuple[Annotated[int, Field(ge=1, le=2**24)], ...] = fixed(
            (100, 100), min_length=1, max_length=64, why="units of each hidden layer"
        )

    def __init__(self, config: Section, spec: InputSpec) -> None:
        super().__init__(config, spec)
        assert isinstance(config, Mlp.Config)
        widths = (math.prod(spec.shape), *config.hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.width = widths[-1]

    @property
    def measured_options(self) -> dict[str, Json] | None:
        return {"hidden": [layer.out_features for layer in self.layers if isinstance(layer, nn.Linear)]}

    def forward(self, x: Tensor) -> Tensor:
        features_BD: Tensor = self.layers(x.flatten(1))
        return features_BD
