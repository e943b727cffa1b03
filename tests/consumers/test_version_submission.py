from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers import version_submission
from consumers.version_submission import VersionSubmission
from model_store.registration_queue import RegistrationQueue
from model_store.registry import RegisteredVersion, RegistrationRequest
from pipeline.classifier import Classifier, Prediction
from pipeline.codec.image import encode_png
from pipeline.record import Partition
from pipeline.stream_learner import StreamLearner
from tests.consumers.digit_records import digit_images
from tests.consumers.learner_world import learner_settings

SHA = "ab" * 32
OFFSETS = {Partition("pets.samples", 0): 12, Partition("pets.samples", 1): 7}


class AsleepRegistrar:
    """Notes what is asked of it, and registers nothing."""

    def __init__(self, waiting: int = 0) -> None:
        self.asked: list[object] = []
        self.waiting = waiting
        self.runs = True

    def start(self) -> bool:
        self.asked.append("start")
        return self.runs

    def close(self, drain_seconds: float | None = None, goes_on: Callable[[float], bool] = bool) -> int:
        self.asked.append(drain_seconds if goes_on is bool else next(s for s in range(100) if not goes_on(s)))
        return self.waiting


class Side:
    """A submission with all that it speaks to."""

    def __init__(self, folder: Path, **queue: Any) -> None:
        self.queue = RegistrationQueue(folder / "registrations", **queue)
        self.registrar = AsleepRegistrar()
        self.registered: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.submission = VersionSubmission(
            self.queue,
            self.registrar,
            stream="pets",
            state_id="state-1",
            registered=lambda version, run_id: self.registered.append((version, run_id)),
            warned=self.warnings.append,
        )

    def submit(self, learner: StreamLearner, sha: str = SHA, since_records: int = 0) -> None:
        submit = self.submission.prepare(
            learner,
            offsets=OFFSETS,
            trigger="periodic",
            since_records=since_records,
            evaluation=learner.evaluate_unrecorded(),
        )
        if submit is not None:
            assert learner.learner is not None
            submit(learner.learner.state(), sha)

    def register(self, version: int) -> RegistrationRequest:
        """What the registrar would do with the oldest request."""
        pending = self.queue.oldest()
        assert pending is not None
        tags = {"palimpsest.trigger": pending.request.trigger}
        self.queue.finish(
            pending,
            RegisteredVersion(
                stream="pets", version=version, tags=tags, aliases=frozenset(), created_at_ms=0, run_id=f"run-{version}"
            ),
        )
        return pending.request


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path)


@pytest.fixture(scope="module")
def learnt() -> StreamLearner:
    """Two classes of digits, evaluated after every 90 records."""
    from pipeline.codec.record_decoder import RecordDecoder
    from producers.dataset_source import DatasetOptions
    from producers.datasets import open_dataset
    from producers.sample_stream import SampleStream
    from producers.schedules.split import Split

    learner = StreamLearner(learner_settings())
    decoder = RecordDecoder(learner.settings.input)
    stream = SampleStream(open_dataset("digits", DatasetOptions()), Split(), records=200, classes_per_step=5)
    for record in stream.log("pets.samples"):
        if learner.add(decoder.decode(record)):
            learner.step(learner.assembler.take())
    learner.discard_pending()
    return learner


def test_before_anything_was_learnt_there_is_nothing_to_serve(side: Side) -> None:
    side.submit(StreamLearner(learner_settings()))
    assert side.queue.pending_numbers() == []
    assert side.registrar.asked == []


def test_a_request_says_what_the_version_is_and_holds_what_serves_it(side: Side, learnt: StreamLearner) -> None:
    side.submit(learnt)
    assert side.registrar.asked == ["start"]
    pending = side.queue.oldest()
    assert pending is not None
    request = pending.request
    assert (request.stream, request.state_id, request.snapshot_sha256) == ("pets", "state-1", SHA)
    assert dict(request.offsets) == OFFSETS
    assert request.trigger == "periodic"
    assert list(request.classes) == list(learnt.class_names)
    assert request.records_trained == learnt.records_trained
    now, recorded = learnt.evaluate_unrecorded(), learnt.forgetting.newest_report()
    assert now is not None
    assert recorded is not None
    assert now.at_records > recorded.at_records
    assert (request.average_forgetting, request.worst_class) == (now.average_forgetting, now.worst_class)
    # The served model answers as the learner does.
    x, _ = digit_images()
    answers = Classifier.load(request.servable).predict([(encode_png(image), "image/png") for image in x[:50]])
    labels = [answer.label for answer in answers if isinstance(answer, Prediction)]
    assert labels == [learnt.class_names[column] for column in learnt.predict_columns(x[:50])]
    assert len(set(labels)) > 1


def test_only_evaluations_since_the_last_version_are_new(side: Side, learnt: StreamLearner) -> None:
    points = learnt.forgetting.points
    assert len(points) >= 2
    after_first = points[0].at_records
    side.submit(learnt)
    side.submit(learnt, "cd" * 32, since_records=after_first)
    first, second = side.register(1), side.register(2)
    steps = [point.at_records for point in points]
    assert sorted({metric.step for metric in first.metrics}) == steps
    assert sorted({metric.step for metric in second.metrics}) == steps[1:]
    accuracies = {metric.step: metric.value for metric in first.metrics if metric.name == "average_accuracy"}
    assert accuracies == {
        point.at_records: point.average_accuracy for point in points if point.average_accuracy is not None
    }
    of_classes = {metric.name for metric in first.metrics if metric.name.startswith("class_accuracy/")}
    assert of_classes == {f"class_accuracy/{name}" for point in points for name in point.class_accuracies}
    assert all(np.isfinite(metric.value) for metric in first.metrics)


def test_a_receipt_becomes_one_event_and_goes_when_it_is_committed(side: Side, learnt: StreamLearner) -> None:
    side.submit(learnt)
    assert list(side.submission.collect()) == []
    side.register(3)
    assert list(side.submission.collect()) == [
        {"version": 3, "snapshot_sha256": SHA, "tags": {"palimpsest.trigger": "periodic"}}
    ]
    assert side.registered == [("3", "run-3")]
    assert list(side.submission.collect()) == [], "told once"
    # Killed before the commit: the next learner tells it.
    after_kill = Side(side.queue.folder.parent)
    assert [event["version"] for event in after_kill.submission.collect()] == [3]
    after_kill.submission.acknowledge()
    assert list(Side(side.queue.folder.parent).submission.collect()) == []


def test_what_cannot_be_registered_is_a_warning_and_no_event(side: Side, learnt: StreamLearner) -> None:
    side.submit(learnt)
    side.queue.set_aside(1, SHA, "weights.safetensors is broken")
    assert list(side.submission.collect()) == []
    assert side.registered == []
    (warning,) = side.warnings
    assert "weights.safetensors is broken" in warning


def test_a_registrar_that_died_is_started_as_long_as_something_waits(side: Side, learnt: StreamLearner) -> None:
    side.submission.collect()
    assert side.registrar.asked == []
    side.submit(learnt)
    side.submission.collect()
    assert side.registrar.asked == ["start", "start"]
    side.register(1)
    side.submission.collect()
    assert side.registrar.asked == ["start", "start"]


def test_a_full_queue_is_told(tmp_path: Path, learnt: StreamLearner) -> None:
    side = Side(tmp_path, max_pending=2)
    for number in range(3):
        side.submit(learnt, f"{number:02d}" * 32)
    assert side.queue.pending_numbers() == [1, 3]
    (warning,) = side.warnings
    assert "number 2 made room" in warning


def test_closing_starts_it_for_what_waits_and_answers_how_many_remain(side: Side, learnt: StreamLearner) -> None:
    assert side.submission.close(lambda waited: waited < 5) == 0
    assert side.registrar.asked == [5.0], "nothing waits: nothing is started"
    side.submit(learnt)
    side.registrar.asked.clear()
    side.registrar.waiting = 1
    assert side.submission.close(lambda waited: waited < 2) == 1
    assert side.registrar.asked == ["start", 2]
    # What remains is a later run's: the last look at the receipts neither starts it again nor says that it died.
    side.registrar.runs = False
    side.submission.collect()
    assert side.registrar.asked == ["start", 2]
    assert side.warnings == []


def test_leaving_waits_for_nothing(side: Side) -> None:
    with side.submission:
        pass
    assert side.registrar.asked == [0.0]


def test_it_knows_what_waits_and_what_is_still_to_be_told(side: Side, learnt: StreamLearner) -> None:
    assert not side.submission.holds(SHA)
    side.submit(learnt)
    assert side.submission.holds(SHA)
    assert not side.submission.holds("cd" * 32)
    side.register(3)
    after_kill = Side(side.queue.folder.parent)
    assert after_kill.submission.holds(SHA)
    assert after_kill.submission.holds(SHA), "asking takes nothing away"
    assert [event["version"] for event in after_kill.submission.collect()] == [3]
    after_kill.submission.acknowledge()
    assert not Side(side.queue.folder.parent).submission.holds(SHA)


def test_a_request_that_cannot_be_read_is_held_for_nobody(side: Side) -> None:
    folder = side.queue.folder / "pending" / "0000000001"
    folder.mkdir(parents=True)
    for content in (b"\xff", b"[]", b"{}"):
        (folder / "request.json").write_bytes(content)
        assert not side.submission.holds(SHA)


def test_versions_that_wait_for_long_are_told_once_for_each_outage(
    side: Side, learnt: StreamLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.submit(learnt)
    side.submission.collect()
    assert side.warnings == [], "it has just begun to wait"
    monkeypatch.setattr(version_submission, "_PATIENCE_SECONDS", 0.0)
    for _ in range(3):
        side.submission.collect()
    assert len(side.warnings) == 1
    assert "1 versions wait for MLflow" in side.warnings[0]
    side.register(1)
    side.submission.collect()
    side.submit(learnt, "cd" * 32)
    side.submission.collect()
    assert len(side.warnings) == 2


def test_a_registrar_that_keeps_dying_is_told_once(side: Side, learnt: StreamLearner) -> None:
    side.submit(learnt)
    side.registrar.runs = False
    for _ in range(3):
        side.submission.collect()
    (warning,) = side.warnings
    assert "the process that registers them died" in warning
