"""Erasures as state, and erased states."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.erasure import (
    Erasures,
    Removed,
    erased,
    named_subject,
    subject_from_hex,
    subject_hex,
    unknown_rows,
)
from pipeline.record import Partition, Record
from pipeline.sample import Decoded, Sample
from pipeline.settings import LearnerSettings
from pipeline.state import StateTree, fingerprint, join, split
from pipeline.stream_learner import StreamLearner

TOPIC = "people.samples"
FIRST, SECOND = Partition(TOPIC, 0), Partition(TOPIC, 1)
SETTINGS = LearnerSettings.model_validate(
    {
        "threads": 1,
        "device": "cpu",
        "batch_size": 4,
        "replay": {"capacity": 12, "draw_size": 4},
        "hold_out": {"share": 0.4},
        "evaluation": {"every_records": 10, "min_class_samples": 1},
    }
)


def decoded(offset: int, *, person: int | None = None) -> Decoded:
    """Whoever it is about stands in x[0], the offset in x[1]."""
    person = offset % 5 if person is None else person
    x = np.array([person, offset], dtype=np.float32)
    return Decoded(
        Record(TOPIC, 0, offset, b""),
        Sample(x=x, kind="vector", label="ab"[offset % 2], source="s", id=str(offset), subject=f"person {person}"),
    )


def learnt(records: Sequence[Decoded], learner: StreamLearner | None = None) -> StreamLearner:
    """Every whole batch of them."""
    learner = learner or StreamLearner(SETTINGS)
    for record in records:
        if learner.add(record):
            learner.step(learner.assembler.take())
    return learner


def loaded(state: StateTree) -> StreamLearner:
    learner = StreamLearner(SETTINGS)
    learner.load_state(join(*split(state)))
    return learner


def people(state: StateTree) -> set[int]:
    """Whose raw samples are in it."""
    tree = cast(Any, state)
    rows = [tree["learner"]["reservoir"]["x"]] if tree["learner"] else []
    rows += [tree["hold_out"]["x"]] if "x" in tree["hold_out"] else []
    return {int(person) for x in rows for person in x[:, 0].tolist()}


def key(person: int) -> int:
    return StreamLearner(SETTINGS).hold_out.subject_key(f"person {person}")


def test_records_before_the_end_are_covered_and_later_ones_are_not() -> None:
    erasures = Erasures()
    assert not erasures
    erasures.add(-7, {FIRST: 10})
    assert erasures
    assert [erasures.covers(-7, FIRST, offset) for offset in (0, 9, 10, 11)] == [True, True, False, False]
    assert not erasures.covers(-7, SECOND, 0), "it did not exist at the erasure"
    assert not erasures.covers(7, FIRST, 0)


def test_erased_twice_the_later_offset_of_each_partition_holds() -> None:
    erasures = Erasures()
    erasures.add(1, {FIRST: 10, SECOND: 3})
    erasures.add(1, {FIRST: 4, SECOND: 8})
    assert erasures.state() == [{"subject": subject_hex(1), "until": [[TOPIC, 0, 10], [TOPIC, 1, 8]]}]


@pytest.mark.parametrize("value", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_a_subject_in_hexadecimal_and_back(value: int) -> None:
    assert len(subject_hex(value)) == 16
    assert subject_from_hex(subject_hex(value)) == value


def test_the_state_is_json_and_no_live_part_of_it() -> None:
    erasures, restored = Erasures(), Erasures()
    erasures.add(-5, {SECOND: 2, FIRST: 1})
    erasures.add(5, {FIRST: 3})
    state = erasures.state()
    text = json.dumps(state)
    restored.load_state(json.loads(text))
    assert restored.state() == state
    erasures.add(5, {FIRST: 9})
    assert json.dumps(state) == text
    restored.load_state([])
    assert not restored


def test_the_subject_among_headers_is_the_last_that_says_something() -> None:
    assert named_subject((("ce_id", b"1"),)) is None
    assert named_subject((("ce_subject", b"a"), ("CE_SUBJECT", b"b"), ("ce_subject", None))) == "b"
    assert named_subject((("ce_subject", b""),)) is None
    assert named_subject((("ce_subject", b"\xff"),)) is None
    assert named_subject(cast(Any, None)) is None, "other clients write null headers"


def test_an_erased_state_has_none_of_the_subject_and_all_of_the_others() -> None:
    learner = learnt([decoded(offset) for offset in range(60)])
    state = learner.state()
    before = fingerprint(state)
    assert people(state) == set(range(5)), "else the test shows nothing"
    for person in range(5):
        left, removed = erased(state, key(person), {FIRST: 60})
        assert people(left) == set(range(5)) - {person}
        assert removed.reservoir_rows + removed.held_out_samples > 0
        reservoir = cast(Any, left)["learner"]["reservoir"]
        assert len(reservoir["x"]) == 12 - removed.reservoir_rows
        assert person not in reservoir["x"][:, 0].tolist()
        again, none = erased(left, key(person), {FIRST: 60})
        assert none == Removed(reservoir_rows=0, held_out_samples=0)
        assert fingerprint(again) == fingerprint(left)
    assert fingerprint(state) == before


def test_nothing_but_samples_and_the_erasure_changes() -> None:
    state = learnt([decoded(offset) for offset in range(60)]).state()
    left, _ = erased(state, key(3), {FIRST: 60})
    tensors, facts = split(state)
    left_tensors, left_facts = split(left)
    changed = {name for name in tensors if not torch.equal(tensors[name].nan_to_num(), left_tensors[name].nan_to_num())}
    assert {name.rsplit("/", 1)[0] for name in changed} <= {"learner/reservoir", "hold_out"}
    assert left_tensors.keys() == tensors.keys()
    different = {name for name in left_facts if left_facts[name] != facts.get(name)}
    assert different <= {"learner/reservoir/holes", "erasures", "hold_out/labels"}
    assert left_facts["erasures"] == [{"subject": subject_hex(key(3)), "until": [[TOPIC, 0, 60]]}]
    assert "person" not in json.dumps(left_facts["erasures"])


def test_a_learner_goes_on_from_an_erased_state_and_skips_what_a_replay_brings() -> None:
    """Fallen back to after record 20, with the erasure of a subject whose records went on to 59."""
    records = [decoded(offset) for offset in range(60)]
    left, _ = erased(learnt(records[:20]).state(), key(3), {FIRST: 60})
    learner = loaded(left)
    learnt(records[learner.records_consumed :], learner)
    assert learner.records_consumed > 50
    assert people(learner.state()) == {0, 1, 2, 4}
    back = [decoded(offset, person=3) for offset in range(60, 120)]
    learnt(back, learner)
    assert 3 in people(learner.state()), "what is written later is ordinary"


def test_an_erased_state_goes_on_the_same_after_every_restart() -> None:
    records = [decoded(offset) for offset in range(60)]
    left, _ = erased(learnt(records[:24]).state(), key(3), {FIRST: 40})
    straight, cut = loaded(left), loaded(left)
    learnt(records[straight.records_consumed :], straight)
    learnt(records[cut.records_consumed : 36], cut)
    cut = loaded(cut.state())
    learnt(records[cut.records_consumed :], cut)
    assert straight.records_consumed > 50
    assert fingerprint(straight.state()) == fingerprint(cut.state())


def test_every_sample_erased_leaves_a_learner_that_learns_on() -> None:
    state = learnt([decoded(offset, person=1) for offset in range(30)]).state()
    left, removed = erased(state, key(1), {FIRST: 30})
    assert people(left) == set()
    assert removed.reservoir_rows == 12
    learner = learnt([decoded(offset) for offset in range(30, 60)], loaded(left))
    assert len(people(learner.state())) > 1


def test_with_everybody_erased_who_was_held_out_nothing_is_evaluated_until_others_come() -> None:
    records = [decoded(offset) for offset in range(40)]
    learner = learnt(records)
    held_out = [n for n in range(5) if learner.hold_out.chooses(cast(Sample, decoded(0, person=n).sample))]
    assert 0 < len(held_out) < 5
    assert learner.evaluate_unrecorded() is not None
    state = learner.state()
    for person in held_out:
        state, _ = erased(state, key(person), {FIRST: 40})
    learner = loaded(state)
    assert learner.hold_out.classes == []
    others = [n for n in range(5) if n not in held_out]
    learnt([decoded(offset, person=others[offset % len(others)]) for offset in range(40, 60)], learner)
    report = learner.forgetting.newest_report()
    assert report is not None
    assert report.at_records <= 40
    assert learner.evaluate_unrecorded() is None
    learnt([decoded(offset, person=offset % 5) for offset in range(60, 90)], learner)
    report = learner.forgetting.newest_report()
    assert report is not None
    assert report.at_records > 60


def test_the_state_of_nothing_learnt_can_be_erased_from() -> None:
    left, removed = erased(StreamLearner(SETTINGS).state(), key(1), {FIRST: 0})
    assert removed == Removed(reservoir_rows=0, held_out_samples=0)
    assert loaded(left).learner is None


def test_rows_of_an_older_release_are_counted_and_removed_where_asked() -> None:
    state = learnt([decoded(offset) for offset in range(40)]).state()
    tree = cast(Any, state)
    for name in ("subjects", "holes"):
        del tree["learner"]["reservoir"][name]
    tree.pop("erasures", None)
    assert unknown_rows(state) == 12
    left, removed = erased(state, key(1), {FIRST: 40})
    assert removed.reservoir_rows == 0
    assert unknown_rows(left) == 12
    left, removed = erased(state, key(1), {FIRST: 40}, unknown_too=True)
    assert removed.reservoir_rows == 12
    assert unknown_rows(left) == 0
    learner = learnt([decoded(offset) for offset in range(40, 60)], loaded(left))
    assert unknown_rows(learner.state()) == 0
    assert isinstance(cast(Any, learner.state())["learner"]["reservoir"]["subjects"], Tensor)
