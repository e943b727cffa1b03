"""A transformer encoder of texts: a small one made here, or one from a local transformers checkpoint.

Devlin et al. 2019 (BERT, arXiv:1810.04805); small sizes after Turc et al. 2019 (arXiv:1908.08962), whose BERT-tiny is
the default; layers that share their weights after Lan et al. 2020 (ALBERT, arXiv:1909.11942).
Legend: B = rows, T = tokens, D = width
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.backbones.backbone import Backbone
from pipeline.sample import InputSpec
from pipeline.settings_section import Section, fixed
from pipeline.state import Json
from pipeline.user_error import UserError

# Encoders that pad with id 0, as our texts do, and whose code is transformers' own
_MODEL_TYPES = ("albert", "bert", "distilbert", "electra")
# Written into a checkpoint's config by whoever saved it; they say nothing about the architecture
_NOT_ARCHITECTURE = ("_name_or_path", "transformers_version", "id2label", "label2id", "torch_dtype", "dtype")
# These say nothing about the encoder either, but transformers acts on them: it would name so many classes, import code,
# and load kernels.
_NOT_OBEYED = ("num_labels", "auto_map", "quantization_config", "architectures")
_LARGEST_SIZE = 2**24
_MOST_LAYERS = 96  # transformers builds them one by one, also where they have shapes only


class TextEncoder(Backbone):
    """The mean of the last layer's outputs over the tokens that are not padding (id 0).

    Where we differ: no dropout, since an update must be a function of state and records.
    """

    name = "text_encoder"
    kinds = frozenset({"text"})
    prefers_bfloat16 = True

    class Config(Section):
        layers: int = fixed(2, ge=1, le=96, why="transformer layers")
        width: int = fixed(128, ge=1, le=16384, why="D, a multiple of heads")
        heads: int = fixed(2, ge=1, le=1024, why="attention heads of a layer")
        vocabulary: int = fixed(8192, ge=2, le=2**24, why="token ids are below it; input.vocabulary_size by default")
        share_layers: bool = fixed(False, why="one layer's weights in all layers, as in ALBERT")
        checkpoint: str | None = fixed(
            None, why="a local folder with config.json and model.safetensors; then the fields above do not count"
        )
        encoder: dict[str, Any] | None = fixed(
            None, why="the transformers config itself: how a state keeps a checkpoint's"
        )

    def __init__(self, config: Section, spec: InputSpec) -> None:
        super().__init__(config, spec)
        assert isinstance(config, TextEncoder.Config)
        self._options = config
        (tokens,) = spec.shape
        described = _described(config, tokens)
        self._described = described
        encoder_config = _encoder_config(described)
        if encoder_config.max_position_embeddings < tokens:
            raise UserError(
                f"texts have {tokens} tokens, this text encoder takes {encoder_config.max_position_embeddings}: "
                "set a smaller input.max_tokens"
            )
        from transformers import AutoModel

        try:
            self.encoder: nn.Module = AutoModel.from_config(  # type: ignore[no-untyped-call]
                encoder_config, **_without_pooler(encoder_config)
            )
        except (KeyError, TypeError, ZeroDivisionError) as error:  # an activation that there is not, no heads
            raise UserError(
                f"no {encoder_config.model_type} text encoder has this config ({type(error).__name__}: "
                f"{_reason(error)}): give a whole checkpoint"
            ) from error
        self.width = int(encoder_config.hidden_size)
        self._heads = int(encoder_config.num_attention_heads)

    @property
    def measured_options(self) -> dict[str, Json] | None:
        linear = {name: layer for name, layer in self.encoder.named_modules() if isinstance(layer, nn.Linear)}
        inner = next(layer for name, layer in linear.items() if name.endswith(("intermediate.dense", "ffn", "lin1")))
        model_type = self._described["model_type"]
        if model_type == "electra":  # its embeddings are another size or have no projection: not both from one config
            return None
        if model_type == "distilbert":
            sizes = {"dim": inner.in_features, "hidden_dim": inner.out_features}
        else:
            sizes = {"hidden_size": inner.in_features, "intermediate_size": inner.out_features}
        if model_type == "albert":
            embeddings = next(layer for layer in self.encoder.modules() if isinstance(layer, nn.Embedding))
            sizes["embedding_size"] = embeddings.embedding_dim
        return {"encoder": {**self._described, **sizes}}

    @property
    def attention_heads(self) -> Mapping[nn.Linear, int]:
        ends = ("query", "key", "value", "q_lin", "k_lin", "v_lin")
        linear = ((name, layer) for name, layer in self.encoder.named_modules() if isinstance(layer, nn.Linear))
        return {layer: self._heads for name, layer in linear if name.endswith(ends)}

    def forward(self, x: Tensor) -> Tensor:
        mask_BT = x != 0
        mask_BT[:, 0] = True  # a text of nothing but padding still has a mean
        # Four dimensions, to be added to the attention's scores: from two, transformers would make the same after
        # asking whether any token is padding at all, for which the CPU must wait for the device.
        scores_BT = torch.zeros(x.shape, device=x.device).masked_fill_(~mask_BT, torch.finfo(torch.float32).min)
        outputs_BTD = self.encoder(input_ids=x, attention_mask=scores_BT[:, None, None]).last_hidden_state
        weight_BT1 = mask_BT.unsqueeze(-1).to(outputs_BTD.dtype)
        features_BD: Tensor = (outputs_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
        return features_BD

    def load_pretrained(self) -> None:
        folder = self._options.checkpoint
        if folder is None:
            return
        from transformers import AutoModel

        config = _encoder_config(self._described)
        try:
            with _without_chatter():
                encoder, info = AutoModel.from_pretrained(
                    folder,
                    config=config,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    dtype=torch.float32,
                    **_without_pooler(config),
                )
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise UserError(
                f"checkpoint {folder!r} does not load ({reason}): give a folder with model.safetensors"
            ) from error
        if info["missing_keys"]:
            raise UserError(
                f"checkpoint {folder!r} lacks weights of its {config.model_type} encoder, such as "
                f"{sorted(info['missing_keys'])[0]!r}: give a whole checkpoint"
            )
        self.encoder = encoder

    @property
    def resolved_options(self) -> dict[str, Json]:
        if self._options.checkpoint is None and self._options.encoder is None:
            return cast("dict[str, Json]", self._options.model_dump(mode="json"))
        return {"encoder": cast(Json, self._described)}


def has_encoder(folder: str) -> bool:
    """Whether a transformers folder holds an encoder beside (or instead of) its tokenizer."""
    return (Path(folder) / "config.json").is_file() and any(Path(folder).glob("model*.safetensors"))


def _described(options: TextEncoder.Config, tokens: int) -> dict[str, Any]:
    """The transformers config as JSON: made from our options, read from the checkpoint, or as it was saved."""
    if options.checkpoint is not None:
        file = Path(options.checkpoint) / "config.json"
        if not file.is_file():
            raise UserError(f"checkpoint {options.checkpoint!r} is no local folder with a config.json: give its path")
        try:
            described = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{str(file)!r} is not JSON ({error}): give a whole checkpoint") from error
        if not isinstance(described, dict):
            raise UserError(f"{str(file)!r} is no config of a transformers model: give a whole checkpoint")
        return {key: value for key, value in described.items() if key not in _NOT_ARCHITECTURE}
    if options.encoder is not None:
        return options.encoder
    if options.width % options.heads:
        raise UserError(
            f"network.options.width {options.width} is no multiple of heads {options.heads}: change one of them"
        )
    described = {
        "model_type": "albert" if options.share_layers else "bert",
        "vocab_size": options.vocabulary,
        "hidden_size": options.width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "intermediate_size": 4 * options.width,
        "max_position_embeddings": tokens,
        "type_vocab_size": 1,
        "pad_token_id": 0,
    }
    return {**described, "embedding_size": options.width} if options.share_layers else described


def _encoder_config(described: dict[str, Any]) -> Any:
    """A transformers config from the allow-list, without dropout and with attention that is deterministic anywhere."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    model_type = described.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise UserError(f"text encoder of type {model_type!r}: use one of {', '.join(_MODEL_TYPES)}")
    ignored = {"model_type", *_NOT_ARCHITECTURE, *_NOT_OBEYED}
    fields = {
        key: value
        for key, value in described.items()
        if key not in ignored and isinstance(value, bool | int | float | str | None)  # sizes, names, switches
    }
    for key, value in fields.items():
        if isinstance(value, int) and abs(value) > _LARGEST_SIZE:
            raise UserError(f"text encoder with absurd sizes: {key} {value}, at most {_LARGEST_SIZE}; use another")
    try:
        config = AutoConfig.for_model(model_type, **fields)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(
            f"no config of a {model_type} text encoder ({_reason(error)}): give a whole checkpoint"
        ) from error
    sizes = (config.hidden_size, config.vocab_size, config.max_position_embeddings)
    # ALBERT's two further counts multiply its layers
    counts = (config.num_hidden_layers, getattr(config, "num_hidden_groups", 1), getattr(config, "inner_group_num", 1))
    if not all(isinstance(size, int) and 1 <= size <= _LARGEST_SIZE for size in sizes):
        raise UserError(f"text encoder with absurd sizes {sizes} (width, vocabulary, positions): use another")
    if not all(isinstance(count, int) and 1 <= count <= _MOST_LAYERS for count in counts):
        raise UserError(
            f"text encoder with {counts} layers, groups, layers a group: {_MOST_LAYERS} is the most of each"
        )
    for name, value in config.to_dict().items():
        if "dropout" in name and isinstance(value, (int, float)):
            setattr(config, name, 0.0)
    config._attn_implementation = "eager"
    return config


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _without_chatter() -> Iterator[None]:
    """transformers draws a progress bar and a table of unused weights; what matters of it, we raise."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _without_pooler(config: Any) -> dict[str, bool]:
    """BERT's pooler feeds next-sentence prediction; here it would be a layer that never gets a gradient."""
    return {"add_pooling_layer": False} if config.model_type in ("albert", "bert") else {}
