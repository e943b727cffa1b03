"""A classifier says what the learner it was made from says, wherever it is opened."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.classifier import Classifier, Prediction
from pipeline.learner import Learner
from pipeline.network import Network, build_network
from pipeline.sample import BadRecord, DeadLetterReason, InputSpec
from pipeline.settings import InputSettings, LearnerSettings, NetworkSettings, OptimizerSettings
from pipeline.user_error import UserError

SPEC = InputSpec(kind="image", shape=(1, 6, 5))
VECTOR = InputSpec(kind="vector", shape=(3,))


def png(x_HW: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(x_HW).save(buffer, "PNG")
    return buffer.getvalue()


def npy(x: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


def images(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Dark, grey and bright ones in turn, with noise."""
    noise = np.random.default_rng(seed).integers(0, 40, (count, 1, 6, 5))
    return (noise + 100 * (np.arange(count) % 3)[:, None, None, None]).astype(np.uint8)


def learner() -> Learner:
    """Three classes learnt, sixteen columns allocated: the spare ones must never be predicted."""
    settings = LearnerSettings(device="cpu", batch_size=6, retention={}, optimizer=OptimizerSettings(learning_rate=0.3))
    learner = Learner(settings, SPEC)
    for number in range(60):
        learner.update(images(6, seed=number), ["b", "a", "köln"] * 2)
    return learner


def linear() -> Network:
    """logits = the input's first two values and 9 in each spare column, worked out by hand."""
    network = build_network(NetworkSettings(backbone="mlp", options={"hidden": [3]}, initial_columns=4), VECTOR, 0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.zero_()
            if name.endswith("weight"):
                parameter[:2, :2] = torch.eye(2)
        network.head.bias[2:] = 9.0
    return network


def test_probabilities_are_a_softmax_over_known_columns_only() -> None:
    classifier = Classifier(linear(), ["no", "yes"], VECTOR, InputSettings())
    (answer,) = classifier.predict([(npy(np.array([0.0, np.log(3.0), 5.0], np.float32)), "application/x-npy")])
    assert isinstance(answer, Prediction)
    assert answer.label == "yes"
    assert answer.probability == pytest.approx(0.75)
    assert answer.probabilities == pytest.approx({"no": 0.25, "yes": 0.75})


def test_a_bad_payload_is_answered_and_hurts_no_other() -> None:
    classifier = Classifier(linear(), ["no", "yes"], VECTOR, InputSettings())
    good = npy(np.array([2.0, 0.0, 0.0], np.float32))
    answers = classifier.predict(
        [
            (good, "application/x-npy"),
            (b"", "application/x-npy"),
            (good[:-1], "application/x-npy"),
            (npy(np.zeros(4, np.float32)), "application/x-npy"),
            (png(np.zeros((6, 5), np.uint8)), "image/png"),
            (good, "application/x-unheard-of"),
            (npy(np.array([np.nan, 0.0, 0.0], np.float32)), "application/x-npy"),
            (good, "application/x-npy"),
        ]
    )
    assert [answer.reason if isinstance(answer, BadRecord) else answer.label for answer in answers] == [
        "no",
        DeadLetterReason.NO_PAYLOAD,
        DeadLetterReason.BROKEN_ARRAY,
        DeadLetterReason.WRONG_SHAPE,
        DeadLetterReason.WRONG_TYPE,
        DeadLetterReason.UNKNOWN_CONTENT_TYPE,
        DeadLetterReason.NOT_FINITE,
        "no",
    ]
    assert classifier.predict([]) == []
    assert all(isinstance(answer, BadRecord) for answer in classifier.predict([(b"", "image/png")] * 3))


def test_it_predicts_as_its_learner_does_before_and_after_saving(tmp_path: Path) -> None:
    source = learner()
    x = images(600, seed=9)  # more than one pass
    expected = [source.class_names[column] for column in source.predict_columns(x)]
    made = Classifier.from_state(source.state(), source.settings.input)
    made.save(tmp_path / "servable")
    assert sorted(path.name for path in (tmp_path / "servable").iterdir()) == ["servable.json", "weights.safetensors"]
    opened = Classifier.load(tmp_path / "servable")
    assert opened.class_names == ("b", "a", "köln")
    payloads = [(png(row[0]), "image/png") for row in x]
    for classifier in (made, opened):
        answers = classifier.predict(payloads)
        assert [answer.label for answer in answers if isinstance(answer, Prediction)] == expected
    assert len(set(expected)) > 1


def test_it_is_a_copy_that_later_learning_leaves_alone() -> None:
    source = learner()
    made = Classifier.from_state(source.state(), source.settings.input)
    before = made.predict_probabilities(images(4))
    source.update(images(6), ["new"] * 6)
    assert np.array_equal(made.predict_probabilities(images(4)), before)


@pytest.mark.parametrize(
    "fault", ["no json", "no weights", "flipped", "format", "architecture", "names", "extra", "shape"]
)
def test_a_servable_that_is_not_whole_is_refused(tmp_path: Path, fault: str) -> None:
    Classifier(linear(), ["no", "yes"], VECTOR, InputSettings()).save(tmp_path)
    path, weights = tmp_path / "servable.json", tmp_path / "weights.safetensors"
    document = json.loads(path.read_text())
    if fault == "no json":
        path.unlink()
    elif fault == "no weights":
        weights.unlink()
    elif fault == "flipped":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        changes: dict[str, dict[str, object]] = {
            "format": {"format_version": 2},
            "architecture": {"architecture": {**document["architecture"], "backbone": "os"}},
            "names": {"class_names": ["c"] * 5},
            "extra": {"code": "import os"},
            "shape": {"input_shape": [4]},
        }
        path.write_text(json.dumps({**document, **changes[fault]}))
    with pytest.raises(UserError):
        Classifier.load(tmp_path)


def test_a_model_that_knows_nothing_cannot_predict() -> None:
    with pytest.raises(UserError, match="knows no class yet"):
        Classifier(linear(), [], VECTOR, InputSettings())


def test_a_checkpoint_s_tokenizer_travels_with_the_servable(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "news"]
    (checkpoint / "vocab.txt").write_text("\n".join(words))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (checkpoint / "model.safetensors").write_bytes(b"the encoder's weights are in the network's")
    settings = InputSettings(max_tokens=6, checkpoint=str(checkpoint))
    spec = InputSpec(kind="text", shape=(6,))
    network = build_network(NetworkSettings(), spec, 0)
    made = Classifier(network, ["x", "y"], spec, settings)
    expected = made.predict([(b"good news", "text/plain; charset=utf-8")])
    made.save(tmp_path / "servable")
    for path in checkpoint.iterdir():
        path.unlink()
    assert sorted(path.name for path in (tmp_path / "servable" / "tokenizer").iterdir()) == [
        "tokenizer_config.json",
        "vocab.txt",
    ]
    assert Classifier.load(tmp_path / "servable").predict([(b"good news", "text/plain; charset=utf-8")]) == expected


def test_weights_alone_are_in_the_weights(tmp_path: Path) -> None:
    network = linear()
    Classifier(network, ["no", "yes"], VECTOR, InputSettings()).save(tmp_path)
    assert set(load_file(tmp_path / "weights.safetensors")) == set(network.state_dict())
