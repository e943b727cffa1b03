"""The servable part of a snapshot: network, class names and how payloads are read. Raw payloads in, labels out.

    <folder>/weights.safetensors   the network's tensors
             servable.json         architecture, class names, input, format version, the weights' sum
             tokenizer/            the checkpoint's tokenizer, where texts are read with one

Opens wherever this package is installed; it needs no learner, no Kafka and no MLflow.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from pipeline.codec.record_decoder import RecordDecoder
from pipeline.device import to_device
from pipeline.network import Network, network_from_architecture
from pipeline.sample import BadRecord, DeadLetterReason, InputKind, InputSpec
from pipeline.settings import InputSettings
from pipeline.state import Json, StateTree
from pipeline.user_error import UserError

WEIGHTS_FILE = "weights.safetensors"
SERVABLE_FILE = "servable.json"
TOKENIZER_FOLDER = "tokenizer"
FORMAT_VERSION = 1

# What makes up a transformers tokenizer; a checkpoint's weights are in the network's.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "config.json",
)
_PREDICTED_ROWS = 256  # rows of one pass: bounds memory, and is large enough to keep a device busy


class ServableDamaged(UserError):
    """A file of it is missing, or not what was written: another copy may be whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the network says of one payload."""

    label: str
    probability: float  # of the label, among the known classes
    probabilities: Mapping[str, float]  # of every known class; they sum to 1


class Classifier:
    """Predicts among the known classes; spare columns take no part. Changes nothing, draws nothing.

    One classifier may be shared by threads.
    """

    def __init__(
        self,
        network: Network,
        class_names: Sequence[str],
        spec: InputSpec,
        input_settings: InputSettings,
        *,
        device: torch.device | None = None,
    ) -> None:
        """`class_names` by logit column. The network is the classifier's own from now on (it is put in eval mode)."""
        if not class_names:
            raise UserError("the model knows no class yet: let it learn before it is asked to predict")
        if len(class_names) > network.columns:
            raise UserError(f"{len(class_names)} class names for {network.columns} logit columns: not one model's")
        if network.spec != spec:
            raise UserError(f"the network takes {network.spec}, not {spec}")
        self.class_names = tuple(class_names)
        self.spec = spec
        self.input_settings = input_settings
        self._device = device or torch.device("cpu")
        self._network = network.to(self._device).eval()
        self._decoder = RecordDecoder(input_settings, labelled=False)

    @classmethod
    def from_state(
        cls, learner_state: StateTree, input_settings: InputSettings, *, device: torch.device | None = None
    ) -> Classifier:
        """The servable of a learner's state (`Learner.state()`, or `state["learner"]` of a snapshot): its averaged
        weights, where it has some."""
        average = cast("dict[str, dict[str, Tensor]]", learner_state.get("average", {}))
        weights = {**cast("dict[str, Tensor]", learner_state["network"]), **average.get("weights", {})}
        network = network_from_architecture(cast("dict[str, object]", learner_state["architecture"]), weights=weights)
        network.load_state_dict(weights)
        names = cast("dict[str, list[str]]", learner_state["classes"])["names"]
        return cls(network, names, network.spec, input_settings, device=device)

    @property
    def network(self) -> Network:
        """Its own, in eval mode: to be asked, never to be changed."""
        return self._network

    # -- predicting ------------------------------------------------------------------------------------------------

    def predict(self, payloads: Sequence[tuple[bytes, str]]) -> list[Prediction | BadRecord]:
        """(payload, content type) of each record -> one answer each, in their order.

        A payload that cannot be read is answered by its `BadRecord`; the others of the batch do not suffer.
        """
        answers: list[Prediction | BadRecord | None] = [None] * len(payloads)
        for start in range(0, len(payloads), _PREDICTED_ROWS):
            rows: list[npt.NDArray[np.generic]] = []
            places: list[int] = []
            for place in range(start, min(start + _PREDICTED_ROWS, len(payloads))):
                try:
                    rows.append(self._decode(*payloads[place]))
                    places.append(place)
                except BadRecord as problem:
                    # Tracebacks would keep half-decoded images alive with the answers.
                    problem.__cause__ = problem.__context__ = None
                    answers[place] = problem.with_traceback(None)
            if rows:
                for place, probabilities_K in zip(places, self.predict_probabilities(np.stack(rows)), strict=True):
                    answers[place] = self._prediction(probabilities_K)
        assert all(answer is not None for answer in answers)
        return cast("list[Prediction | BadRecord]", answers)

    def predict_probabilities(self, x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """x (B, ...) in the dtype of `spec` -> probabilities (B, known classes)."""
        known = len(self.class_names)
        found = [np.empty((0, known), np.float32)]
        with torch.inference_mode():
            for start in range(0, len(x), _PREDICTED_ROWS):
                logits_BK, _ = self._network(to_device(x[start : start + _PREDICTED_ROWS], self._device))
                found.append(logits_BK[:, :known].float().softmax(dim=1).cpu().numpy())
        return np.concatenate(found)

    def _decode(self, value: bytes, content_type: str) -> npt.NDArray[np.generic]:
        x, kind = self._decoder.decode_payload(value, content_type)
        if kind != self.spec.kind:
            raise BadRecord(DeadLetterReason.WRONG_TYPE, f"this model takes {self.spec.kind}, the payload holds {kind}")
        if tuple(x.shape) != self.spec.shape:
            raise BadRecord(
                DeadLetterReason.WRONG_SHAPE,
                f"this model takes shape {self.spec.shape}, the payload has {tuple(x.shape)}",
            )
        return x

    def _prediction(self, probabilities_K: npt.NDArray[np.float32]) -> Prediction | BadRecord:
        if not np.isfinite(probabilities_K).all():  # finite values may be so large that the network's are not
            return BadRecord(DeadLetterReason.NOT_FINITE, "what the network makes of it is not finite")
        probabilities = dict(zip(self.class_names, map(float, probabilities_K), strict=True))
        label = self.class_names[int(probabilities_K.argmax())]
        return Prediction(label=label, probability=probabilities[label], probabilities=probabilities)

    # -- saving ----------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the servable into a folder that is new or empty, each file synced."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._network.state_dict().items()}
        weights = safetensors_torch.save(tensors)
        servable = _Servable(
            format_version=1,
            architecture=self._network.architecture,
            class_names=list(self.class_names),
            input_kind=self.spec.kind,
            input_shape=list(self.spec.shape),
            input_settings=self._saved_settings(folder),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
        )
        _write(folder / WEIGHTS_FILE, weights)
        _write(folder / SERVABLE_FILE, servable.model_dump_json(indent=1).encode())

    def _saved_settings(self, folder: Path) -> dict[str, Json]:
        """The settings, with the checkpoint's tokenizer beside them: its folder is on no other machine."""
        settings = cast("dict[str, Json]", self.input_settings.model_dump(mode="json"))
        if self.input_settings.checkpoint is None:
            return settings
        target = folder / TOKENIZER_FOLDER
        target.mkdir()
        for name in _TOKENIZER_FILES:
            source = Path(self.input_settings.checkpoint) / name
            if source.is_file():
                shutil.copyfile(source, target / name)
        return {**settings, "checkpoint": TOKENIZER_FOLDER}

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | None = None) -> Classifier:
        """Inverse of `save`. `UserError` where the folder holds no whole servable that this release reads, and of these
        `ServableDamaged`."""
        servable = _read_servable(folder)
        settings = dict(servable.input_settings)
        if settings.get("checkpoint") is not None:
            settings["checkpoint"] = str(folder / TOKENIZER_FOLDER)
        try:
            weights = (folder / WEIGHTS_FILE).read_bytes()
        except OSError as error:
            raise _unreadable(folder, WEIGHTS_FILE, error) from error
        if hashlib.sha256(weights).hexdigest() != servable.weights_sha256:
            raise ServableDamaged(
                f"{folder / WEIGHTS_FILE} does not match the SHA-256 in {SERVABLE_FILE}: copy it again"
            )
        try:
            tensors = safetensors_torch.load(weights)
            network = network_from_architecture(servable.architecture, weights=tensors)
            network.load_state_dict(tensors)
            input_settings = InputSettings.model_validate(settings)
        except (SafetensorError, RuntimeError, KeyError, ValidationError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{folder} is not a servable that this release can open: {reason}") from error
        spec = InputSpec(kind=servable.input_kind, shape=tuple(servable.input_shape))
        return cls(network, servable.class_names, spec, input_settings, device=device)


class _Servable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Literal[1]
    architecture: dict[str, Any]
    class_names: list[str]
    input_kind: InputKind
    input_shape: list[int]
    input_settings: dict[str, Any]
    weights_sha256: str


def _read_servable(folder: Path) -> _Servable:
    try:
        document = json.loads((folder / SERVABLE_FILE).read_bytes())
    except OSError as error:
        raise _unreadable(folder, SERVABLE_FILE, error) from error
    except (ValueError, RecursionError) as error:
        raise ServableDamaged(f"{folder} is not a servable: {SERVABLE_FILE} cannot be read ({error})") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder / SERVABLE_FILE} has format version {version!r}, this release reads {FORMAT_VERSION}; "
            "use the release that wrote it"
        )
    try:
        return _Servable.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{folder / SERVABLE_FILE}: {place}: {first['msg']}") from error


def _unreadable(folder: Path, name: str, error: OSError) -> UserError:
    """A disk that fails, or a folder that may not be read, is no damage of the servable's."""
    damaged = isinstance(error, FileNotFoundError | NotADirectoryError)
    kind = ServableDamaged if damaged else UserError
    return kind(f"{folder} is not a servable: {name} cannot be read ({error.strerror})")


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
