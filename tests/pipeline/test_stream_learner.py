"""Snapshot + records -> later snapshot: counts, evaluations, the state, and what must leave no trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline import keyed_randomness
from pipeline.evaluation import turns
from pipeline.record import Partition, Record
from pipeline.sample import BadRecord, DeadLetterReason, Decoded, Sample
from pipeline.settings import LearnerSettings
from pipeline.state import fingerprint
from pipeline.stream_learner import StepReport, StreamLearner, idle_flush

PARTITION = Partition("t", 0)


def settings(**changes: Any) -> LearnerSettings:
    return LearnerSettings.model_validate(
        {
            "device": "cpu",
            "threads": 1,
            "batch_size": 5,
            "replay": {"capacity": 30, "draw_size": 10},
            "network": {"options": {"hidden": [16]}},
            "evaluation": {"every_records": 40, "min_class_samples": 1, "burst_records": 30},
        }
        | changes
    )


def stream(count: int, *, first: int = 0, shift: float = 0.0) -> list[Decoded]:
    """Points around one corner of a cube for each class; a new class every 60 records, every 9th record bad."""
    decoded = []
    for number in range(first, first + count):
        record = Record("t", 0, number, b"value")
        if number % 9 == 8:
            decoded.append(Decoded(record, None, BadRecord(DeadLetterReason.NO_LABEL, "none")))
            continue
        random = keyed_randomness.generator(7, "test", number)
        label = int(random.integers(0, 2 + number // 60))
        x = np.array([label & 1, label >> 1 & 1, label >> 2 & 1, shift], dtype=np.float32)
        x += random.normal(0, 0.1, 4).astype(np.float32)
        sample = Sample(x=x.astype(np.float32), kind="vector", label=f"c{label}", source="s", id=str(number))
        decoded.append(Decoded(record, sample))
    return decoded


def learn(learner: StreamLearner, records: Iterable[Decoded]) -> list[StepReport]:
    return [learner.step(learner.assembler.take()) for decoded in records if learner.add(decoded)]


def test_a_state_goes_on_as_if_nothing_had_been() -> None:
    """Saved and loaded after every step: bit for bit the same, through new classes, evaluations and unread bits."""
    whole = StreamLearner(settings())
    learn(whole, stream(200))
    pieces = StreamLearner(settings())
    for decoded in stream(200):
        if pieces.add(decoded):
            pieces.step(pieces.assembler.take())
            state = pieces.state()
            pieces = StreamLearner(settings())
            pieces.load_state(state)
            assert fingerprint(pieces.state()) == fingerprint(state)
    assert fingerprint(pieces.state()) == fingerprint(whole.state())
    assert len(whole.class_names) > 3
    assert whole.forgetting.newest_report() is not None


def test_a_saved_state_does_not_move_with_the_learner() -> None:
    learner = StreamLearner(settings())
    learn(learner, stream(100))
    learner.flush()
    state = learner.state()
    before = fingerprint(state)
    learn(learner, stream(100, first=100))
    learner.flush()
    assert fingerprint(state) == before
    assert fingerprint(learner.state()) != before


def test_an_untouched_learner_has_a_state_too() -> None:
    empty = StreamLearner(settings())
    other = StreamLearner(settings())
    learn(other, stream(50))
    other.load_state(empty.state())
    assert other.learner is None
    assert other.spec is None
    assert fingerprint(other.state()) == fingerprint(empty.state())


def test_records_are_counted_by_their_fate() -> None:
    learner = StreamLearner(settings())
    reports = learn(learner, stream(200))
    last = learner.flush()
    assert last is not None
    reports.append(last)
    assert learner.records_consumed == sum(report.batch.records for report in reports) == 200
    dead = sum(len(report.batch.dead) for report in reports)
    assert dead == 200 // 9
    assert learner.records_trained + learner.records_held_out == 200 - dead
    assert learner.learner is not None
    assert learner.learner.updates == sum(report.update is not None for report in reports)
    assert sum(learner.replay_counts().values()) == 30
    assert list(learner.replay_counts()) == list(learner.class_names)


def test_evaluations_come_by_records_and_at_the_end_of_a_first_burst() -> None:
    learner = StreamLearner(settings(evaluation={"every_records": 100, "min_class_samples": 1, "burst_records": 20}))
    at = [report.records_consumed for report in learn(learner, stream(230)) if report.evaluation is not None]
    by_records = [number for number in at if any(0 <= number - hundred < 12 for hundred in (100, 200))]
    assert len(by_records) >= 2
    assert len(at) > len(by_records), "two classes came to 20 records before 100 were consumed"
    report = learner.forgetting.newest_report()
    assert report is not None
    assert [entry.name for entry in report.classes if entry.at_burst_end is not None]


def test_an_evaluation_on_the_side_leaves_no_trace() -> None:
    """With a network that has batch norm and is in training: neither statistics nor draws nor history move."""
    images = settings(
        network={"backbone": "resnet18", "options": {"width": 2}}, replay={"capacity": 10, "draw_size": 4}
    )
    learner = StreamLearner(images)
    decoded = []
    for number in range(40):
        random = keyed_randomness.generator(1, "test", number)
        x = random.integers(0, 256, (1, 8, 8)).astype(np.uint8)
        sample = Sample(x=x, kind="image", label=str(number % 2), source="s", id=str(number))
        decoded.append(Decoded(Record("t", 0, number, b""), sample))
    learn(learner, decoded)
    before = fingerprint(learner.state())
    report = learner.evaluate_unrecorded()
    assert report is not None
    assert report.at_records == learner.records_consumed
    assert fingerprint(learner.state()) == before
    assert learner.learner is not None
    assert learner.learner.network.training


def test_a_batch_begun_is_no_part_of_the_state() -> None:
    learner = StreamLearner(settings())
    learn(learner, stream(50))
    learner.discard_pending()
    before = fingerprint(learner.state())
    assert not learner.add(stream(1, first=50)[0])
    assert fingerprint(learner.state()) == before
    learner.discard_pending()
    assert learner.flush() is None, "nothing is there to flush"
    assert learner.decisions == []


def test_a_flush_is_a_decision_that_a_replay_obeys() -> None:
    first = StreamLearner(settings())
    learn(first, stream(52))
    pending = first.assembler.pending_records
    assert pending > 0
    assert first.flush() is not None
    learn(first, stream(60, first=52))
    assert first.decisions == [idle_flush({PARTITION: 52})]

    def replay(decisions: Sequence[Any]) -> StreamLearner:
        learner = StreamLearner(settings())
        learner.obey(decisions)
        learn(learner, stream(112))
        return learner

    assert fingerprint(replay(first.decisions).state()) == fingerprint(first.state())
    assert fingerprint(replay([]).state()) != fingerprint(first.state())


def test_a_state_obeys_its_own_decisions_after_going_back() -> None:
    """An adoption loads a state at earlier offsets that knows what was decided later."""
    first = StreamLearner(settings())
    learn(first, stream(30))
    first.discard_pending()
    parent = first.state()
    begun = cast(int, parent["records_consumed"])
    learn(first, stream(52 - begun, first=begun))
    first.flush()
    parent["decisions"] = cast(Any, list(first.decisions))
    again = StreamLearner(settings())
    again.load_state(parent)
    learn(again, stream(52 - begun, first=begun))
    assert again.assembler.pending_records == 0
    assert fingerprint(again.state()) == fingerprint(first.state())


def test_a_span_without_a_trainable_record_is_a_step_without_an_update() -> None:
    learner = StreamLearner(settings(max_records_per_batch=4))
    bad = [
        Decoded(Record("t", 0, number, b""), None, BadRecord(DeadLetterReason.NO_LABEL, "none")) for number in range(4)
    ]
    (report,) = learn(learner, bad)
    assert report.update is None
    assert (learner.records_consumed, learner.learner) == (4, None)


def test_repeats_are_remembered_by_the_state() -> None:
    learner = StreamLearner(settings(deduplication_window=20))
    records = [decoded for decoded in stream(30) if decoded.sample]
    learn(learner, records[:20])
    learner.flush()
    state = learner.state()
    learner = StreamLearner(settings(deduplication_window=20))
    learner.load_state(state)
    sent_again = [decoded._replace(record=decoded.record._replace(offset=100 + i)) for i, decoded in enumerate(records)]
    learn(learner, sent_again[:20])
    report = learner.flush()
    assert report is not None
    assert len(report.batch.duplicates) == report.batch.records == 20
    assert report.update is None


def test_chance_is_that_among_the_classes_known_before() -> None:
    """80 records of one class, then 80 of another, five a batch. By hand, over a class's records 2 to 50: those of its
    first batch could not be predicted (chance 0), the 45 others had one class to choose from, and then two."""
    learner = StreamLearner(settings(hold_out={"share": 0.0}))
    decoded = []
    for number in range(160):
        x = np.array([number // 80, 0, 0, number], dtype=np.float32)
        sample = Sample(x=x, kind="vector", label=f"c{number // 80}", source="s", id=str(number))
        decoded.append(Decoded(Record("t", 0, number, b""), sample))
    reports = learn(learner, decoded)
    assert [report.update.known_before for report in reports if report.update] == [0] + [1] * 16 + [2] * 15
    early_chance = cast(dict[str, torch.Tensor], learner.prequential.state())["early_chance"]
    assert early_chance.tolist() == pytest.approx([45.0, 22.5])


def test_an_evaluation_that_was_just_recorded_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = StreamLearner(settings())
    reports = learn(learner, stream(300))
    while learner.forgetting.newest_report() is None or reports[-1].evaluation is None:
        reports += learn(learner, stream(10, first=learner.records_consumed + learner.assembler.pending_records))
    monkeypatch.setattr(StreamLearner, "_accuracies", None)
    assert learner.evaluate_unrecorded() == reports[-1].evaluation


def test_with_many_held_out_samples_classes_are_evaluated_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "ALL_AT_ONCE", 30)
    # 16 samples an evaluation, so one or two of the seven classes; bursts never end
    spread = settings(
        hold_out={"share": 0.4},
        evaluation={"every_records": 4, "min_class_samples": 1, "burst_records": 10_000},
        deduplication_window=0,
    )
    whole, pieces = StreamLearner(spread), StreamLearner(spread)
    reports = learn(whole, stream(400))
    for decoded in stream(400):
        if pieces.add(decoded):
            pieces.step(pieces.assembler.take())
            state = pieces.state()
            pieces = StreamLearner(spread)
            pieces.load_state(state)
    assert fingerprint(pieces.state()) == fingerprint(whole.state())

    newest = [report.evaluation for report in reports if report.evaluation is not None][-1]
    at = {entry.name: entry.at_records for entry in newest.classes}
    assert at.keys() == set(whole.class_names)
    assert max(at.values()) == newest.at_records
    assert len(set(at.values())) > 3, "most were evaluated at other times"
    assert min(at.values()) > newest.at_records - 150, "everybody has had a turn lately"

    now = whole.evaluate_unrecorded()
    assert now is not None
    assert {entry.at_records for entry in now.classes} == {whole.records_consumed}
    assert whole.forgetting.newest_report() == newest, "nothing of it is recorded"


def test_prequential_accuracy_is_read_every_sixteen_updates() -> None:
    learner = StreamLearner(settings(drift={"detector": None}))
    seen = [
        (learner.learner.updates, learner.prequential.records) for _ in learn_one_by_one(learner) if learner.learner
    ]
    assert [records for updates, records in seen if updates < 16] == [0] * 15
    assert dict(seen)[16] == 80
    assert dict(seen)[31] == 80
    assert dict(seen)[32] == 160
    assert learner.prequential.accuracy is not None
    assert learner.prequential.accuracy > 0.35


def learn_one_by_one(learner: StreamLearner) -> Iterable[StepReport]:
    for decoded in stream(400):
        if learner.add(decoded):
            yield learner.step(learner.assembler.take())


def test_drift_is_told_once_and_the_next_update_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = StreamLearner(settings(retention={}))
    heard: list[tuple[int, bool]] = []

    def spy(x: Any, labels: Any, *, subjects: Any, drift: bool) -> Any:
        assert learner.learner is not None
        report = original(x, labels, subjects=subjects, drift=drift)
        heard.append((report.number, drift))
        # From the 161st update on, nothing is predicted right.
        right = torch.full((len(labels),), report.number <= 160)
        return type(report)(
            **{name: getattr(report, name) for name in report.__dataclass_fields__ if name != "correct_B"},
            correct_B=right,
        )

    learn(learner, stream(20))
    assert learner.learner is not None
    original = learner.learner.update
    monkeypatch.setattr(learner.learner, "update", spy)
    reports = learn(learner, stream(1300, first=20))
    fired = [report.update.number for report in reports if report.drift and report.update]
    assert fired
    assert fired[0] in (176, 192)
    assert all(number % 16 == 0 for number in fired)
    assert [number for number, drift in heard if drift] == [number + 1 for number in fired]
