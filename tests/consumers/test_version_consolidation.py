"""Two versions in a real MLflow become a third one, which knows what both knew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from consumers.version_teacher import VersionTeacher, check_of_one_kind
from model_store.mlflow_registry import MlflowRegistry
from model_store.model_uri import ModelUri
from model_store.registry import InMemoryRegistry, RegisteredVersion, RegistryUnavailable
from pipeline.classifier import Classifier
from pipeline.codec.image import encode_png
from pipeline.network import build_network
from pipeline.record import Partition
from pipeline.restructuring.consolidation_settings import (
    PLAIN_DMC,
    ConsolidationSettings,
    for_ready_teachers,
)
from pipeline.restructuring.refused import Refused
from pipeline.sample import InputSpec
from pipeline.settings import InputSettings, NetworkSettings
from pipeline.user_error import UserError
from tests.consumers.digit_records import digit_images
from tests.consumers.versions_world import QUICK, Bench, accuracy, digits_classifier, register, unlabelled_log
from tests.mlflow_database import mlflow_at
from tests.model_store.tiny_servable import payload, tiny_classifier

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


@pytest.fixture
def bench(tracking_uri: str, tmp_path: Path) -> Bench:
    """Version 1 knows 0 to 2, version 2 knows 3 to 5, version 3 knows 2 to 4."""
    bench = Bench(tmp_path, MlflowRegistry(tracking_uri), unlabelled_log("012345"))
    for number, classes in enumerate(("012", "345", "234")):
        register(bench.registry, tmp_path, digits_classifier(tuple(classes), seed=number))
    return bench


@pytest.fixture
def in_memory(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, InMemoryRegistry(), unlabelled_log("012345"))
    for number, classes in enumerate(("012", "345")):
        register(bench.registry, tmp_path, digits_classifier(tuple(classes), seed=number))
    return bench


def test_disjoint_classes(bench: Bench, tracking_uri: str) -> None:
    report = bench.run("models:/digits/1", "models:/digits/2")
    assert report is not None
    assert report.version.version == 4
    assert report.class_names == tuple("012345")
    assert report.unlabelled_rows > 400
    assert report.left_out == 0
    version = bench.registry.find("digits", 4)
    assert version is not None
    assert version.tags["palimpsest.old_version"] == "models:/digits/1"
    assert version.tags["palimpsest.new_version"] == "models:/digits/2"
    assert version.trigger == "consolidation"
    assert version.parent_version is None, "it is of no learner's line"
    assert json.loads(version.tags["palimpsest.classes"]) == list("012345")
    assert version.offsets == {Partition("digits.unlabelled", 0): len(bench.log._records[bench.log.partitions[0]])}
    assert version.aliases == {"challenger"}
    student = bench.classifier("models:/digits/4")
    teachers = [accuracy(bench.classifier(f"models:/digits/{n}"), digits) for n, digits in ((1, "012"), (2, "345"))]
    assert min(teachers) > 0.9
    assert accuracy(student, "012345") > 0.6
    assert all(accuracy(student, digit) > 0.3 for digit in "012345")
    assert not list(bench.work.glob("digits-*")), "what was saved has gone"
    # as MLflow opens it
    import mlflow
    import pandas as pd  # type: ignore[import-untyped]

    x, y = digit_images()
    frame = pd.DataFrame({"payload": [encode_png(image) for image in x[1000:1100]], "content_type": "image/png"})
    with mlflow_at(tracking_uri):
        answers = mlflow.pyfunc.load_model("models:/digits/4").predict(frame)
    assert answers["error"].isna().all()
    assert set(json.loads(answers["probabilities"][0])) == set("012345")
    known = y[1000:1100] < 6
    assert np.mean(answers["label"][known].astype(int) == y[1000:1100][known]) > 0.6


def test_a_class_that_both_know_takes_the_mean(bench: Bench) -> None:
    report = bench.run("models:/digits/1", "models:/digits/3", settings=QUICK.model_copy(update={"epochs": 60}))
    assert report is not None
    assert report.class_names == tuple("01234")
    student = bench.classifier("models:/digits/4")
    x, y = digit_images()
    rows = x[:300][y[:300] < 5]
    old, new = (bench.open(f"models:/digits/{number}").teacher().ask(rows).logits_BC.numpy() for number in (1, 3))
    old, new = old - old.mean(axis=1, keepdims=True), new - new.mean(axis=1, keepdims=True)
    target = np.concatenate([old[:, :2], (old[:, 2:] + new[:, :1]) / 2, new[:, 1:]], axis=1)
    target -= target.mean(axis=1, keepdims=True)
    said = np.log(student.predict_probabilities(rows))
    said -= said.mean(axis=1, keepdims=True)
    assert np.abs(said - target).mean() < 0.25 * np.abs(target).mean()


def test_an_alias_and_another_model(bench: Bench, tmp_path: Path) -> None:
    bench.registry.set_alias("digits", "champion", 2)
    report = bench.run("models:/digits/1", "models:/digits@champion", register="compact")
    assert report is not None
    assert (report.version.stream, report.version.version) == ("compact", 1)
    assert report.version.tags["palimpsest.new_version"] == "models:/digits/2"
    assert len(bench.registry.versions("digits")) == 3
    assert bench.open("models:/compact/1").unlabelled_topic == "digits.unlabelled"
    assert bench.open("models:/digits/1").unlabelled_topic == "digits.unlabelled"
    # and what comes of it is a teacher again
    register(bench.registry, tmp_path, digits_classifier(("8", "9")))
    bench.log = unlabelled_log("01234589")
    again = bench.run("models:/compact/1", "models:/digits/4")
    assert again is not None
    assert again.class_names == tuple("01234589")


def test_stopped_and_resumed_it_comes_to_the_same_student(bench: Bench) -> None:
    assert bench.run("models:/digits/1", "models:/digits/2", stop_after=40) is None
    assert len(bench.registry.versions("digits")) == 3
    assert len(list(bench.work.glob("digits-*"))) == 1
    bench.log.append(b"what came since is not of the job", headers=(("content-type", b"text/plain"),))
    resumed = bench.run("models:/digits/1", "models:/digits/2")
    assert resumed is not None
    of_resumed = bench.steps
    assert resumed.left_out == 0
    bench.log = unlabelled_log("012345")
    whole = bench.run("models:/digits/1", "models:/digits/2", register="whole")
    assert whole is not None
    assert of_resumed == bench.steps - 40
    assert whole.version.snapshot_sha256 == resumed.version.snapshot_sha256, "the same bits"


def test_done_again_it_finds_the_version_that_it_made(in_memory: Bench) -> None:
    first = in_memory.run("models:/digits/1", "models:/digits/2")
    again = in_memory.run("models:/digits/1", "models:/digits/2")
    assert first is not None
    assert again is not None
    assert first.version.version == again.version.version == 3
    assert len(in_memory.registry.versions("digits")) == 3


def test_a_registry_that_is_away_at_the_end_costs_nothing(in_memory: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> RegisteredVersion:
        raise RegistryUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(in_memory.registry, "register", away)
        with pytest.raises(RegistryUnavailable):
            in_memory.run("models:/digits/1", "models:/digits/2")
    report = in_memory.run("models:/digits/1", "models:/digits/2")
    assert report is not None
    assert report.version.version == 3
    assert in_memory.steps == 0, "all of it was saved"


def test_saved_under_other_settings_is_begun_anew(in_memory: Bench) -> None:
    assert in_memory.run("models:/digits/1", "models:/digits/2", stop_after=10) is None
    report = in_memory.run(
        "models:/digits/1", "models:/digits/2", settings=QUICK.model_copy(update={"epochs": 2, "batch_size": 50})
    )
    assert report is not None
    assert in_memory.steps == 2 * -(-report.unlabelled_rows // 50)


def test_what_the_hold_out_chooses_is_not_distilled_on(in_memory: Bench) -> None:
    report = in_memory.run("models:/digits/1", "models:/digits/2", settings=QUICK.model_copy(update={"epochs": 1}))
    assert report is not None
    records = len(in_memory.log._records[in_memory.log.partitions[0]])
    assert 0.8 * records < report.unlabelled_rows < records


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_no_such_version(bench: Bench) -> None:
    with pytest.raises(
        UserError, match=r"there is no model 'nobody' in this MLflow; check the name, or --tracking-uri"
    ):
        bench.open("models:/nobody/1")
    with pytest.raises(
        UserError, match=r"'digits' has no version 9; its newest versions are 3, 2, 1, its aliases chal"
    ):
        bench.open("models:/digits/9")
    with pytest.raises(UserError, match=r"model 'digits' has no alias 'champion'; its newest versions are 3, 2, 1"):
        bench.open("models:/digits@champion")


def test_another_program_s_version(bench: Bench, tracking_uri: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "file:///nowhere")
    with pytest.raises(UserError, match=r"models:/theirs/1 is no version that Palimpsest registered: name one that"):
        bench.open("models:/theirs/1")


def test_an_artifact_that_is_not_whole(bench: Bench, tmp_path: Path) -> None:
    for file in tmp_path.rglob("mlartifacts/**/weights.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=r"models:/digits/1 cannot be opened, its artifact is not whole: name another"):
        bench.open("models:/digits/1")


def test_other_kinds_of_input(in_memory: Bench, tmp_path: Path) -> None:
    register(in_memory.registry, tmp_path, tiny_classifier(), "pets")
    with pytest.raises(
        UserError, match=r"digits/1 takes image of shape \(1, 8, 8\), models:/pets/1 takes vector of sh"
    ):
        in_memory.run("models:/digits/1", "models:/pets/1")
    with pytest.raises(UserError, match="--old and --new are both models:/digits/2: name two versions"):
        in_memory.run("models:/digits/2", "models:/digits@challenger")


def test_texts_that_are_read_otherwise(tmp_path: Path) -> None:
    def reads(vocabulary: int, number: int) -> VersionTeacher:
        spec = InputSpec(kind="text", shape=(8,))
        settings = NetworkSettings(
            backbone="text_encoder",
            options={"vocabulary": 1024, "width": 8, "heads": 1, "layers": 1},
            initial_columns=2,
        )
        input_settings = InputSettings(vocabulary_size=vocabulary, max_tokens=8)
        classifier = Classifier(build_network(settings, spec, 0), ("a", "b"), spec, input_settings)
        version = RegisteredVersion(
            stream="mail", version=number, tags={}, aliases=frozenset(), created_at_ms=0, run_id=None
        )
        uri = ModelUri(name="mail", at=number)
        return VersionTeacher(uri=uri, version=version, classifier=classifier, servable=tmp_path)

    check_of_one_kind(reads(512, 1), reads(512, 2))
    with pytest.raises(UserError, match="models:/mail/1 and models:/mail/2 read texts with other tokens"):
        check_of_one_kind(reads(512, 1), reads(1024, 2))


def test_too_few_rows(in_memory: Bench) -> None:
    in_memory.log = unlabelled_log("0", slice(0, 100))
    with pytest.raises(Refused, match="unlabelled rows are too few for a good student, at least 50 are wanted"):
        in_memory.run("models:/digits/1", "models:/digits/2")
    in_memory.log = unlabelled_log("", slice(0, 1))
    with pytest.raises(Refused, match="0 unlabelled rows are too few"):
        in_memory.run("models:/digits/1", "models:/digits/2")
    for _ in range(60):
        in_memory.log.append(payload(1.0, 2.0), headers=(("content-type", b"application/x-npy"),))
    with pytest.raises(
        Refused, match=r"60 records in digits\.unlabelled are not image of shape \(1, 8, 8\), and 0 rows"
    ):
        in_memory.run("models:/digits/1", "models:/digits/2")
    assert not in_memory.work.exists(), "nothing was begun"


def test_what_needs_records_is_off_unless_somebody_asked_for_it(in_memory: Bench) -> None:
    settings, off = for_ready_teachers(ConsolidationSettings(epochs=3))
    assert off == ("calibrated", "gated", "replay_weight")
    assert all(getattr(settings, name) == value for name, value in PLAIN_DMC.items())
    assert settings.epochs == 3
    same, nothing = for_ready_teachers(QUICK)
    assert (same, nothing) == (QUICK, ())
    asked, _ = for_ready_teachers(ConsolidationSettings(gated=True, min_unlabelled=1))
    with pytest.raises(Refused, match="two ready teachers have none: set gated to false"):
        in_memory.run("models:/digits/1", "models:/digits/2", settings=asked)
