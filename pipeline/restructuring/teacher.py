"""A network that is asked and never changed, with the classes it knows.

Legend: B = rows, C = classes it knows, D = width of the features, P = positions of a layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.device import to_device
from pipeline.network import Network, network_from_architecture
from pipeline.restructuring.activations import Activations
from pipeline.restructuring.distillation import attention_map
from pipeline.state import StateTree

_ROWS = 256  # of one pass: bounds memory, and is large enough to keep a device busy


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a teacher says of rows, on its device, float32."""

    logits_BC: Tensor
    features_BD: Tensor | None  # where they were asked for
    maps: tuple[Tensor, ...]  # (B, P) of each layer that has positions, where they were asked for


class Teacher:
    """Its first columns are the classes; spare ones are not heard."""

    def __init__(self, network: Network, class_names: Sequence[str]) -> None:
        """The network is the teacher's own from now on (it is put in eval mode)."""
        assert 0 < len(class_names) <= network.columns, f"{len(class_names)} classes, {network.columns} columns"
        self.network = network.eval().requires_grad_(False)
        self.class_names = tuple(class_names)

    @classmethod
    def from_state(cls, learner_state: StateTree) -> Teacher:
        """Of a learner's state (`state["learner"]` of a snapshot), as it would be served: with its averaged weights,
        where it has some. On the CPU."""
        average = cast("dict[str, dict[str, Tensor]]", learner_state.get("average", {}))
        weights = {**cast("dict[str, Tensor]", learner_state["network"]), **average.get("weights", {})}
        network = network_from_architecture(cast("dict[str, object]", learner_state["architecture"]), weights=weights)
        network.load_state_dict(weights)
        return cls(network, cast("dict[str, list[str]]", learner_state["classes"])["names"])

    def ask(
        self,
        x: npt.NDArray[np.generic],
        *,
        features: bool = False,
        layers: Sequence[str] = (),
    ) -> Answers:
        """Of rows (B, ...) in the dtype of the input spec. `layers`: the attention maps of these."""
        device = self.network.head.weight.device
        wanted = len(self.class_names)
        logits = [torch.empty((0, wanted), device=device)]
        of_features = [torch.empty((0, self.network.body.width), device=device)]
        of_layers: list[list[Tensor]] = [[] for _ in layers]
        with torch.no_grad(), Activations(self.network, layers) as activations:
            for start in range(0, len(x), _ROWS):
                logits_BK, features_BD = self.network(to_device(x[start : start + _ROWS], device))
                logits.append(logits_BK[:, :wanted])
                if features:
                    of_features.append(features_BD)
                for maps, activation in zip(of_layers, activations.taken(), strict=True):
                    maps.append(attention_map(activation))
        return Answers(
            logits_BC=torch.cat(logits),
            features_BD=torch.cat(of_features) if features else None,
            maps=tuple(torch.cat(maps) for maps in of_layers),
        )

    def state(self) -> StateTree:
        """What it is, for a sum over a job's inputs."""
        return {
            "architecture": self.network.architecture,
            "names": list(self.class_names),
            "network": dict(self.network.state_dict()),
        }
