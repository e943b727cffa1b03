"""Every kind of input through Kafka into a learner, and out of its newest snapshot again."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from deploy.embedded_kafka import EmbeddedKafka
from deploy.learning import open_learner
from deploy.settings import load_settings
from pipeline import keyed_randomness
from pipeline.classifier import Classifier, Prediction
from producers.schedules.split import Split
from tests.deploy.streams import send, settings_file

pytestmark = pytest.mark.kafka


def vectors(folder: Path) -> str:
    """Two classes of points, each around its corner."""
    y = np.arange(240) % 2
    x = keyed_randomness.generator(0, "vectors").normal(0, 0.2, (240, 6)) + np.where(y == 1, 1.0, -1.0)[:, None]
    np.savez(folder / "points.npz", x=x.astype(np.float32), y=y)
    return f"npz:{folder / 'points.npz'}"


def texts(folder: Path) -> str:
    """Two topics with words of their own."""
    words = {"sport": ["goal", "match", "team", "league"], "wetter": ["regen", "wind", "schnee", "sonne"]}
    random = keyed_randomness.generator(0, "texts")
    with (folder / "news.jsonl").open("w", encoding="utf-8") as file:
        for number in range(240):
            label = sorted(words)[number % 2]
            file.write(json.dumps({"text": " ".join(random.choice(words[label], 5)), "label": label}) + "\n")
    return f"jsonl:{folder / 'news.jsonl'}"


def numbers_in_columns(folder: Path) -> str:
    """A table of numbers with a label."""
    random = keyed_randomness.generator(0, "columns")
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["a", "b", "label"])
        for number in range(240):
            x, y = random.normal(0, 0.2, 2) + (1 if number % 2 else -1)
            table.writerow([f"{x:.4f}", f"{y:.4f}", "high" if number % 2 else "low"])
    return f"csv:{folder / 'table.csv'}"


def photographs(folder: Path, side: int = 32) -> str:
    """JPEG files in a folder for each class: stripes that stand and stripes that lie."""
    random = keyed_randomness.generator(0, "photographs")
    stripes = np.where(np.arange(side) // 4 % 2, 200, 50)
    for name, pattern in (("standing", stripes[None, :, None]), ("lying", stripes[:, None, None])):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(60):
            pixels = np.clip(random.normal(pattern, 20, (side, side, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.jpg")
    return f"folder:{folder / 'photos'}"


CLIPPED = {"learning_rate": 0.3, "max_gradient_norm": 1.0}
RESNET = {"backbone": "resnet18", "options": {"width": 4}}
SHUFFLENET = {"backbone": "torchvision", "options": {"model": "shufflenet_v2_x0_5"}}


@pytest.mark.parametrize(
    ("make", "records", "network", "backbone", "optimizer"),
    [
        (vectors, 400, {}, "mlp", {"learning_rate": 0.1}),
        (numbers_in_columns, 400, {}, "mlp", {"learning_rate": 0.1}),
        (texts, 400, {"options": {"width": 16, "heads": 2, "layers": 1}}, "text_encoder", CLIPPED),
        (photographs, 400, RESNET, "resnet18", {"learning_rate": 0.05}),
        # after 400 its batch norms' statistics still lag behind its weights, on some machines by too much
        (photographs, 1_000, SHUFFLENET, "torchvision", {"learning_rate": 0.05}),
    ],
    ids=["npy vectors", "csv numbers", "jsonl texts", "JPEG folder, resnet18", "JPEG folder, torchvision"],
)
def test_what_comes_in_is_learnt(
    make: Any,
    records: int,
    network: dict[str, Any],
    backbone: str,
    optimizer: dict[str, Any],
    kafka_broker: EmbeddedKafka,
    stream_name: str,
    tmp_path: Path,
) -> None:
    stream = send(kafka_broker, stream_name, records, dataset=make(tmp_path), schedule=Split())
    file = settings_file(tmp_path, kafka_broker, "registry: {enabled: false}\n")
    values = yaml.safe_load(file.read_text())
    values["learner"] |= {"network": network, "optimizer": optimizer}
    file.write_text(yaml.safe_dump(values))
    settings = load_settings(file)
    with open_learner(stream=stream_name, state=tmp_path / "state", settings=settings) as opened:
        report = opened.process.run(stop=threading.Event(), until_idle_seconds=0.3)
        learner = opened.process.learner
    assert (report.records, report.stopped_by) == (len(stream), "idle")
    assert learner.records_trained + learner.records_held_out == len(stream), "none of them is a dead letter"
    assert learner.learner is not None
    assert learner.learner.architecture["backbone"] == backbone
    evaluation = learner.evaluate_unrecorded()
    assert evaluation is not None
    assert evaluation.average_accuracy is not None
    assert evaluation.average_accuracy > 0.8
    # Another process that resumes it knows the same, bit for bit, and serves raw payloads.
    with open_learner(stream=stream_name, state=tmp_path / "state", settings=settings) as opened:
        assert opened.resumed
        again = opened.process.learner
        assert again.learner is not None
        classifier = Classifier.from_state(again.learner.state(), settings.learner.input)
        rows = again.hold_out.samples(next(iter(again.class_names)))
        np.testing.assert_array_equal(again.predict_columns(rows), learner.predict_columns(rows))
    answers = classifier.predict([stream.dataset.payload(item) for item in range(30)])
    labels = [answer.label if isinstance(answer, Prediction) else str(answer) for answer in answers]
    wanted = [stream.dataset.classes[int(label)] for label in stream.dataset.labels[:30]]
    assert np.mean([label == right for label, right in zip(labels, wanted, strict=True)]) > 0.8
