"""What becomes of each record, decided by hand for small batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.deduplication import RecentIds, identity
from pipeline.erasure import Erasures
from pipeline.evaluation.hold_out import HoldOut
from pipeline.micro_batch import BatchAssembler
from pipeline.record import Partition, Record
from pipeline.sample import BadRecord, DeadLetterReason, Decoded, InputSpec, Sample
from pipeline.settings import LearnerSettings

TOPIC = "digits.samples"
PARTITION = Partition(TOPIC, 0)
SPEC = InputSpec(kind="vector", shape=(2,))


class Assembly:
    """An assembler with its surroundings, and records that follow each other."""

    def __init__(self, **settings: Any) -> None:
        settings = {"batch_size": 3, "hold_out": {"share": 0.0}} | settings
        self.settings = LearnerSettings.model_validate(settings)
        self.recent_ids = RecentIds(self.settings.deduplication_window)
        self.hold_out = HoldOut(self.settings.hold_out)
        self.erasures = Erasures()
        self.assembler = BatchAssembler(self.settings, self.recent_ids, self.hold_out, self.erasures)
        self.known: dict[str, int] = {}
        self.spec: InputSpec | None = None
        self._offsets: dict[int, int] = {}

    def add(
        self,
        label: str = "a",
        *,
        id: str | None = None,
        partition: int = 0,
        time: float | None = None,
        x: Any = (0.0, 1.0),
        subject: str | None = None,
    ) -> bool:
        record = self._record(partition)
        sample = Sample(
            x=np.array(x, dtype=np.float32),
            kind="vector",
            label=label,
            source="s",
            id=id or f"{partition}/{record.offset}",
            event_time_seconds=time,
            subject=subject,
        )
        self.assembler.add(Decoded(record, sample), self.spec, self.known)
        return self.assembler.is_complete

    def add_bad(self, headers: Any = ()) -> bool:
        problem = BadRecord(DeadLetterReason.NO_LABEL, "none")
        self.assembler.add(Decoded(self._record(0, headers), None, problem), self.spec, self.known)
        return self.assembler.is_complete

    def erase(self, subject: str, until: int) -> None:
        self.erasures.add(self.hold_out.subject_key(subject), {PARTITION: until})

    def _record(self, partition: int, headers: Any = ()) -> Record:
        offset = self._offsets.get(partition, 0)
        self._offsets[partition] = offset + 1
        return Record(TOPIC, partition, offset, b"value", headers=headers)


def test_a_batch_is_complete_with_its_trainable_records() -> None:
    assembly = Assembly()
    assert [assembly.add("a"), assembly.add_bad(), assembly.add("b"), assembly.add("a")] == [False, False, False, True]
    assert assembly.assembler.pending_records == 4
    batch = assembly.assembler.take()
    assert batch.labels == ["a", "b", "a"]
    assert batch.x.shape == (3, 2)
    assert batch.x.dtype == np.float32
    assert [(record.offset, problem.reason) for record, problem in batch.dead] == [(1, DeadLetterReason.NO_LABEL)]
    assert (batch.records, batch.records_by_partition, batch.next_offsets) == (4, {PARTITION: 4}, {PARTITION: 4})
    assert batch.last_records[PARTITION].offset == 3
    assert assembly.assembler.pending_records == 0


def test_a_span_ends_though_nothing_was_trainable() -> None:
    assembly = Assembly(max_records_per_batch=2)
    assert [assembly.add_bad(), assembly.add_bad()] == [False, True]
    assert assembly.assembler.take().labels == []


def test_the_span_reaches_over_partitions() -> None:
    assembly = Assembly()
    assembly.add(partition=0)
    assembly.add(partition=1)
    assembly.add(partition=1)
    batch = assembly.assembler.take()
    assert batch.next_offsets == {PARTITION: 1, Partition(TOPIC, 1): 2}
    assert batch.records_by_partition == {PARTITION: 1, Partition(TOPIC, 1): 2}


def test_repeats_within_a_batch_and_of_earlier_ones_are_dropped() -> None:
    assembly = Assembly()
    assembly.recent_ids.add(identity("s", "old"))
    assembly.add(id="old")
    assembly.add(id="new")
    assembly.add(id="new")
    batch = assembly.assembler.take()
    assert [record.offset for record in batch.duplicates] == [0, 2]
    assert batch.labels == ["a"]


def test_a_window_of_none_drops_no_repeats() -> None:
    assembly = Assembly(deduplication_window=0)
    assembly.add(id="same")
    assembly.add(id="same")
    assert assembly.assembler.take().duplicates == []


def test_a_record_that_cannot_be_used_is_never_remembered_as_seen() -> None:
    """Put right and sent again, it is learnt."""
    assembly = Assembly(network={"max_classes": 1})
    assembly.known = {"a": 0}
    assembly.add("b", id="x")
    assembly.add("a", id="x")
    batch = assembly.assembler.take()
    assert [problem.reason for _, problem in batch.dead] == [DeadLetterReason.TOO_MANY_CLASSES]
    assert batch.labels == ["a"]
    assert batch.duplicates == []


def test_classes_count_with_those_that_the_batch_itself_brings() -> None:
    assembly = Assembly(network={"max_classes": 3}, batch_size=10)
    assembly.known = {"a": 0}
    for label in ("b", "c", "d", "b", "a", "e", "c"):
        assembly.add(label)
    batch = assembly.assembler.take()
    assert batch.labels == ["b", "c", "b", "a", "c"]
    assert [str(problem.detail) for _, problem in batch.dead] == [
        "label 'd' would be class 4 of 3",
        "label 'e' would be class 4 of 3",
    ]


def test_held_out_records_bring_no_class_and_fill_no_batch() -> None:
    assembly = Assembly(hold_out={"share": 1.0}, network={"max_classes": 1}, batch_size=1)
    assert [assembly.add("a"), assembly.add("b")] == [False, False]
    batch = assembly.assembler.take()
    assert [sample.label for sample in batch.held_out] == ["a", "b"]
    assert (batch.labels, batch.dead) == ([], [])


def test_the_first_good_sample_sets_what_all_must_look_like() -> None:
    assembly = Assembly()
    assembly.add(x=(1.0, 2.0))
    assembly.add(x=(1.0, 2.0, 3.0))
    batch = assembly.assembler.take()
    assert batch.spec == SPEC
    assert [problem.reason for _, problem in batch.dead] == [DeadLetterReason.WRONG_SHAPE]
    assembly.spec = SPEC
    assembly.add(x=(1.0, 2.0, 3.0))
    batch = assembly.assembler.take()
    assert batch.spec is None, "it was known before"
    assert [problem.reason for _, problem in batch.dead] == [DeadLetterReason.WRONG_SHAPE]


def test_another_kind_of_input_is_told_from_another_shape() -> None:
    assembly = Assembly()
    assembly.spec = InputSpec(kind="image", shape=(2,))
    assembly.add()
    assert [problem.reason for _, problem in assembly.assembler.take().dead] == [DeadLetterReason.WRONG_TYPE]


def test_the_newest_event_time_counts() -> None:
    assembly = Assembly()
    for time in (-5.0, -7.0, None):
        assembly.add(time=time)
    assert assembly.assembler.take().newest_event_time_seconds == -5.0
    assembly.add()
    assert assembly.assembler.take().newest_event_time_seconds is None


def test_nothing_of_a_batch_that_is_discarded_stays() -> None:
    assembly = Assembly()
    assembly.add("new", id="x")
    assembly.assembler.discard()
    assert assembly.assembler.pending_records == 0
    assert identity("s", "x") not in assembly.recent_ids
    assembly.add("new", id="x")
    batch = assembly.assembler.take()
    assert batch.labels == ["new"]
    assert batch.records == 1


@pytest.mark.parametrize("end", [1, 2])
def test_a_recorded_decision_ends_a_span_where_it_ended_before(end: int) -> None:
    assembly = Assembly()
    assembly.assembler.obey([{PARTITION: 99}, {PARTITION: end}])
    complete = [assembly.add() for _ in range(end)]
    assert complete == [False] * (end - 1) + [True]
    assert assembly.assembler.take().ended_by == 1
    assert not assembly.add()
    assert assembly.assembler.take().ended_by is None


def test_records_of_an_erased_subject_are_passed_by_and_count_for_the_span() -> None:
    assembly = Assembly(network={"max_classes": 2})
    assembly.erase("eve", until=3)
    assembly.add("new", id="x", subject="eve", time=9.0, x=(1.0, 2.0, 3.0))
    assembly.add("a", id="y", subject="adam")
    assembly.add("b", subject="eve")
    assert assembly.assembler.pending_offsets == {PARTITION: 3}
    assembly.add("b", subject="eve")
    batch = assembly.assembler.take()
    assert [record.offset for record in batch.erased] == [0, 2]
    assert batch.labels == ["a", "b"], "what is written after the erasure is ordinary"
    assert (batch.dead, batch.duplicates, batch.held_out) == ([], [], [])
    assert (batch.records, batch.next_offsets) == (4, {PARTITION: 4})
    assert batch.newest_event_time_seconds is None
    assert batch.spec == SPEC, "not that of the one passed by"


def test_a_record_of_an_erased_subject_is_not_remembered() -> None:
    assembly = Assembly()
    assembly.erase("eve", until=1)
    assembly.add(id="x", subject="eve")
    assembly.add(id="x", subject="eve")
    batch = assembly.assembler.take()
    assert (len(batch.erased), batch.labels, batch.duplicates) == (1, ["a"], [])


def test_another_partition_has_an_end_of_its_own() -> None:
    assembly = Assembly()
    assembly.erase("eve", until=5)
    assembly.add(subject="eve", partition=1)
    assembly.add(subject="eve", partition=0)
    batch = assembly.assembler.take()
    assert [(record.partition, record.offset) for record in batch.erased] == [(0, 0)]
    assert batch.labels == ["a"]


def test_what_is_no_sample_names_its_subject_in_its_headers_and_is_no_dead_letter() -> None:
    assembly = Assembly()
    assembly.erase("eve", until=3)
    assembly.add_bad((("ce_subject", b"adam"), ("CE_Subject", b"eve")))
    assembly.add_bad((("ce_subject", b"eve"), ("ce_subject", b"adam")))
    assembly.add_bad((("ce_subject", b"\xff"),))
    assembly.add_bad((("ce_subject", b"eve"),))
    batch = assembly.assembler.take()
    assert [record.offset for record in batch.erased] == [0]
    assert [record.offset for record, _ in batch.dead] == [1, 2, 3]


def test_a_held_out_subject_is_passed_by_as_well() -> None:
    assembly = Assembly(hold_out={"share": 1.0})
    assembly.erase("eve", until=9)
    assembly.add(subject="eve")
    assembly.add(subject="adam")
    batch = assembly.assembler.take()
    assert [sample.subject for sample in batch.held_out] == ["adam"]
    assert len(batch.erased) == 1


def test_a_recorded_decision_ends_a_span_at_an_erased_record_too() -> None:
    assembly = Assembly()
    assembly.erase("eve", until=9)
    assembly.assembler.obey([{PARTITION: 1}])
    assert assembly.add(subject="eve")
    assert assembly.assembler.take().ended_by == 0
