"""The network: a body, and a head that grows.

Legend: B = rows, D = width of the features, K = logit columns
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline import keyed_randomness
from pipeline.backbones import chosen_backbone
from pipeline.backbones.backbone import Backbone
from pipeline.sample import InputSpec
from pipeline.settings import NetworkSettings
from pipeline.settings_section import Section
from pipeline.state import Json
from pipeline.user_error import UserError

# One thread may make a network for a version while another one lets a head grow.
_GLOBAL_GENERATOR = threading.Lock()

_MOST_PARAMETERS = 2**31
_MOST_INPUT_VALUES = 2**28
_MOST_DIMENSIONS = 64  # as many as torch and numpy take
_SMALLEST_RESNET_SIDE = 32  # below it a perceptron learns a stream about as well and far faster
_MOST_AUTO_VALUES = 2**20  # a perceptron of 100 million weights; above, no choice of ours would fit into memory


class Network(nn.Module):
    """Body and head. All `K` columns take part in the softmax, also those that stand for no class yet."""

    def __init__(self, body: Backbone, head: nn.Linear, spec: InputSpec, seed: int) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.spec = spec
        self.seed = seed
        self._batch_norms = tuple(m for m in body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))

    @property
    def columns(self) -> int:
        return self.head.out_features

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, ...) in the dtype of the input spec -> logits (B, K), features (B, D).

        uint8 images are scaled to 0..1. In training, a pass of a single row is normalised with the running statistics
        and leaves them alone: one row has no variance of its own (torch refuses it where a map is one pixel).
        """
        if x.dtype == torch.uint8:
            x = x.to(torch.float32).div_(255.0)
        if self._batch_norms and self.training and len(x) == 1:
            with self._running_statistics():
                features_BD = self.body(x)
        else:
            features_BD = self.body(x)
        return self.head(features_BD), features_BD

    @contextmanager
    def _running_statistics(self) -> Iterator[None]:
        training = [norm.training for norm in self._batch_norms]
        for norm in self._batch_norms:
            norm.training = False
        try:
            yield
        finally:
            for norm, was_training in zip(self._batch_norms, training, strict=True):
                norm.training = was_training

    def place_on(self, device: torch.device, *, bfloat16: bool = False) -> None:
        """Move there. On CUDA, and where layers are to compute in bfloat16, the weights of convolutions lie channels
        last, as the fast kernels take them; a pass's values lie as the weights do."""
        self.to(device)
        if (bfloat16 or device.type == "cuda") and any(isinstance(layer, nn.Conv2d) for layer in self.modules()):
            self.to(memory_format=torch.channels_last)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As torch's, but what is frozen in the body stays so."""
        self.body.requires_grad_(requires_grad)
        self.head.requires_grad_(requires_grad)
        return self

    def grow(self, columns: int) -> None:
        """Give the head `columns` columns: old ones bit for bit as they were, new ones keyed by (seed, columns).

        `head` stays the same module (hooks stay on it); its parameters are new objects.
        """
        old = self.head
        assert columns > old.out_features, f"the head only grows: {old.out_features} to {columns}"
        device = old.weight.device
        with torch.no_grad():
            fresh = _new_head(old.in_features, columns, self.seed).to(device)
            fresh.weight[: old.out_features] = old.weight
            fresh.bias[: old.out_features] = old.bias
        old.weight, old.bias, old.out_features = fresh.weight, fresh.bias, columns

    @property
    def architecture(self) -> dict[str, Json]:
        """JSON from which `network_from_architecture` rebuilds the same network, without its weights."""
        return {
            "backbone": self.body.name,
            "options": self.body.resolved_options,
            "input": {"kind": self.spec.kind, "shape": list(self.spec.shape)},
            "columns": self.columns,
        }


def build_network(settings: NetworkSettings, spec: InputSpec, seed: int) -> Network:
    """A fresh network on the CPU; the same seed gives the same weights. UserError where it cannot be built."""
    name = choose_backbone(settings.backbone, spec)
    network = _build(name, settings.options, spec, settings.initial_columns, seed)
    with keyed_initialisation(seed, "pretrained"):  # libraries draw weights before they overwrite them
        network.body.load_pretrained()
    return network


def network_from_architecture(
    architecture: Mapping[str, object], seed: int = 0, *, weights: Mapping[str, Tensor] | None = None
) -> Network:
    """Rebuild a network from `Network.architecture`, with fresh weights, on the CPU.

    Only backbones of this program are built, and only of a size that can be meant: UserError otherwise. With `weights`,
    which are not loaded here, only one that they fit: a file of a few bytes cannot ask for gigabytes.
    """
    try:
        name, options, columns = architecture["backbone"], architecture["options"], architecture["columns"]
        described = architecture["input"]
        if not (isinstance(name, str) and isinstance(options, dict) and isinstance(described, dict)):
            raise TypeError("a part has another type")
        kind, shape = described["kind"], described["shape"]
        if kind not in ("image", "vector", "text") or not isinstance(shape, list) or type(columns) is not int:
            raise TypeError("a part has another type")
    except (KeyError, TypeError) as error:
        raise UserError(f"not the architecture of a network ({error}): {str(architecture)[:200]}") from error
    return _build(name, options, InputSpec(kind=kind, shape=tuple(shape)), columns, seed, weights)


def choose_backbone(name: str, spec: InputSpec) -> str:
    """What the setting `auto` means for this input: a backbone that can take it, whatever a stream starts with.

    UserError where the samples are so large that only a person can say what to do with them.
    """
    if name != "auto":
        return name
    values = math.prod(spec.shape)
    if values > _MOST_AUTO_VALUES:
        raise UserError(
            f"{spec.kind} samples of shape {spec.shape} hold {values:,} values, too many for network.backbone auto "
            f"(at most {_MOST_AUTO_VALUES:,}): set a smaller input.shape, or name a backbone"
        )
    if spec.kind == "image":
        return "resnet18" if min(spec.shape[1:]) >= _SMALLEST_RESNET_SIDE else "mlp"
    return {"vector": "mlp", "text": "text_encoder"}[spec.kind]


def _build(
    name: str,
    options: Mapping[str, Any],
    spec: InputSpec,
    columns: int,
    seed: int,
    weights: Mapping[str, Tensor] | None = None,
) -> Network:
    """Check, build, try.

    1. Name, options and input against what there is.
    2. Build on the meta device, where tensors have shapes only: count the parameters, and compare them with those that
       are to be loaded, before any are allocated.
    3. Build on the CPU, body and head each from its own keyed seed.
    4. Push one row through: libraries say only then that an image is too small.
    """
    # 1.
    backbone, config = chosen_backbone(name, options, spec)
    _check_shape(spec)
    if not 1 <= columns <= _MOST_PARAMETERS:
        raise UserError(f"a network cannot have {columns} logit columns: use 1 to {_MOST_PARAMETERS}")
    # 2.
    with keyed_initialisation(seed, "body"):  # some constructors draw even then
        _check_size(backbone, config, spec, columns, weights)
    # 3.
    with _saying_what_does_not_fit(backbone, spec), keyed_initialisation(seed, "body"):
        body = backbone(config, spec)
    # 4.
    with _saying_what_does_not_fit(backbone, spec), torch.no_grad():
        features_BD = body.eval()(torch.zeros((1, *spec.shape), dtype=torch.int32 if spec.kind == "text" else None))
    assert features_BD.shape == (1, body.width), f"{tuple(features_BD.shape)} of {name} for width {body.width}"
    body.train()
    return Network(body, _new_head(body.width, columns, seed), spec, seed)


def _check_shape(spec: InputSpec) -> None:
    shape = spec.shape
    whole = 1 <= len(shape) <= _MOST_DIMENSIONS and all(type(size) is int and size >= 1 for size in shape)
    if not whole or (spec.kind == "image" and len(shape) != 3) or (spec.kind == "text" and len(shape) != 1):
        raise UserError(
            f"no shape of {spec.kind}: {str(shape)[:80]}; images have (C, H, W), texts (T,), arrays any sizes >= 1"
        )
    if math.prod(shape) > _MOST_INPUT_VALUES:
        raise UserError(f"input shape {shape} holds more than {_MOST_INPUT_VALUES} values: set a smaller input.shape")


def _check_size(
    backbone: type[Backbone], config: Section, spec: InputSpec, columns: int, weights: Mapping[str, Tensor] | None
) -> None:
    with _saying_what_does_not_fit(backbone, spec), torch.device("meta"):
        body = backbone(config, spec)
    parameters = sum(parameter.numel() for parameter in body.parameters()) + columns * (body.width + 1)
    if parameters > _MOST_PARAMETERS:
        raise UserError(
            f"the network would have {parameters:,} parameters, more than {_MOST_PARAMETERS:,}: "
            f"make network.options or network.initial_columns ({columns}) smaller"
        )
    if weights is None:
        return
    expected = {f"body.{name}": tuple(tensor.shape) for name, tensor in body.state_dict().items()}
    expected |= {"head.weight": (columns, body.width), "head.bias": (columns,)}
    held = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted({*expected, *held}):
        if expected.get(name) != held.get(name):
            raise UserError(
                f"the weights are not this architecture's: it has {_shaped(name, expected.get(name))}, they have "
                f"{_shaped(name, held.get(name))}; use a whole and unchanged state"
            )


def _shaped(name: str, shape: tuple[int, ...] | None) -> str:
    return f"no {name}" if shape is None else f"{name} of shape {shape}"


@contextmanager
def _saying_what_does_not_fit(backbone: type[Backbone], spec: InputSpec) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:  # what libraries raise for sizes that do not fit
        raise UserError(
            f"backbone {backbone.name!r} cannot take {spec.kind} input of shape {spec.shape} ({_line(error)}): "
            "set another input.shape, network.backbone or network.options"
        ) from error


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _new_head(width: int, columns: int, seed: int) -> nn.Linear:
    with keyed_initialisation(seed, "head", columns):
        return nn.Linear(width, columns)


@contextmanager
def keyed_initialisation(seed: int, purpose: str, number: int = 0) -> Iterator[None]:
    """Library constructors draw from torch's global CPU generator: inside, it is keyed; after, it is as before.

    One thread at a time: torch has one such generator for the whole process, and whoever draws from it does so in here.
    """
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would also reseed the GPUs' generators
        torch.default_generator.manual_seed(keyed_randomness.torch_seed(seed, purpose, number))
        yield
