"""Any classifier of torchvision, without its last layer.

Legend: B = rows, C = channels, H/W = height/width, D = inputs of the classifier's last linear layer
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.backbones.backbone import Backbone
from pipeline.sample import InputSpec
from pipeline.settings_section import Section, fixed
from pipeline.state import Json
from pipeline.user_error import UserError

# What torchvision's weights were trained with: Krizhevsky's ImageNet statistics of RGB in 0..1
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Torchvision(Backbone):
    """A network of `torchvision.models` by its name. Images of one channel are seen as grey RGB ones.

    Where we differ: dropout and stochastic depth are zero, since an update must be a function of state and records.
    """

    name = "torchvision"
    kinds = frozenset({"image"})
    prefers_bfloat16 = True

    class Config(Section):
        model: str = fixed("resnet18", why="name of a classifier of torchvision.models")
        weights: str | None = fixed(None, why="a local .safetensors file of that model; nothing is ever downloaded")
        imagenet_statistics: bool | None = fixed(
            None, why="normalise by ImageNet's mean and deviation, as its weights expect; none: where weights are given"
        )

    mean_C11: Tensor
    deviation_C11: Tensor

    def __init__(self, config: Section, spec: InputSpec) -> None:
        super().__init__(config, spec)
        import torchvision  # takes a second, and most streams do without

        assert isinstance(config, Torchvision.Config)
        self._options = config
        wanted = config.imagenet_statistics
        self._normalises = config.weights is not None if wanted is None else wanted
        channels, height, width = spec.shape
        if channels not in (1, 3):
            raise UserError(f"backbone 'torchvision' takes images of 1 or 3 channels, not {channels}: set input.shape")
        if config.model not in classifiers():
            raise UserError(
                f"network.options.model {config.model!r} is no classifier of torchvision {torchvision.__version__}: "
                f"use one of {', '.join(classifiers())}"
            )
        device = torch.get_default_device()
        # RegNet computes its widths with tensors, so even its shapes-only build needs a device that holds values
        with torch.device("cpu") if config.model.startswith("regnet") else nullcontext():
            model = torchvision.models.get_model(config.model, **_arguments(config.model, height, width))
        model.to(device)
        path, last = _last_linear(model, config.model)
        self.width = last.in_features
        self._classifier = path
        model.set_submodule(path, nn.Identity())
        for module in model.modules():
            _without_randomness(module)
        self.model = model
        self.register_buffer("mean_C11", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation_C11", torch.tensor(_IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        if self._normalises:
            x = (x - self.mean_C11) / self.deviation_C11
        features_BD: Tensor = self.model(x)
        return features_BD

    def load_pretrained(self) -> None:
        if self._options.weights is None:
            return
        file = Path(self._options.weights)
        if file.suffix != ".safetensors" or not file.is_file():
            raise UserError(f"network.options.weights {str(file)!r} is no .safetensors file here: give its path")
        try:
            weights = load_file(file)
        except SafetensorError as error:
            raise UserError(
                f"network.options.weights {str(file)!r} is not safetensors ({error}): convert it"
            ) from error
        left = ("AuxLogits.", "aux1.", "aux2.", f"{self._classifier}.")  # auxiliary classifiers, and the old head
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(left)}
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            problem = " ".join(str(error).split())[:200]
            raise UserError(
                f"the weights in {str(file)!r} are not those of {self._options.model!r} for this input ({problem})"
            ) from error

    @property
    def resolved_options(self) -> dict[str, Json]:
        return {"model": self._options.model, "weights": None, "imagenet_statistics": self._normalises}


def classifiers() -> list[str]:
    """Names of torchvision's image classifiers."""
    import torchvision

    return cast("list[str]", torchvision.models.list_models(module=torchvision.models))


def _arguments(model: str, height: int, width: int) -> dict[str, Any]:
    """What some constructors must be told."""
    arguments: dict[str, Any] = {"weights": None}
    if model in ("googlenet", "inception_v3"):
        # the auxiliary classifiers are losses of their own; their weights' own input transform is ours to do
        arguments |= {"aux_logits": False, "transform_input": False, "init_weights": True}
    if model.startswith(("vit_", "maxvit")):
        if height != width:
            raise UserError(f"{model!r} takes square images only, not {height}x{width}: set input.shape")
        if model.startswith("vit_"):
            arguments["image_size"] = height
        else:
            arguments["input_size"] = (height, width)
    return arguments


def _last_linear(model: nn.Module, name: str) -> tuple[str, nn.Linear]:
    linears = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UserError(f"{name!r} ends in no linear layer that a growing head could replace: choose another model")
    return linears[-1]


def _without_randomness(module: nn.Module) -> None:
    from torchvision.ops import StochasticDepth

    if isinstance(module, (nn.modules.dropout._DropoutNd, StochasticDepth)):
        module.p = 0.0
    for attribute in ("dropout", "attention_dropout"):  # attention layers keep the probability as a number
        if isinstance(getattr(module, attribute, None), float):
            setattr(module, attribute, 0.0)
