"""Records in log order -> one micro-batch: what is trained on, what is not, and the span of offsets it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.deduplication import RecentIds, identity
from pipeline.erasure import Erasures, named_subject
from pipeline.evaluation.hold_out import HoldOut
from pipeline.record import Partition, Record
from pipeline.sample import BadRecord, DeadLetterReason, Decoded, InputSpec, Sample
from pipeline.settings import LearnerSettings


@dataclass(slots=True, kw_only=True)
class MicroBatch:
    """All records of one span of the log, each in exactly one of the five lists."""

    trainable: list[Sample] = field(default_factory=list)
    held_out: list[Sample] = field(default_factory=list)
    duplicates: list[Record] = field(default_factory=list)
    dead: list[tuple[Record, BadRecord]] = field(default_factory=list)
    erased: list[Record] = field(default_factory=list)  # of subjects erased since they were written
    subjects: list[int] = field(default_factory=list)  # of the trainable, as `HoldOut.key` has them
    trainable_ids: list[int] = field(default_factory=list)  # and of both what to know their repeats by
    held_out_ids: list[int] = field(default_factory=list)
    records: int = 0
    records_by_partition: dict[Partition, int] = field(default_factory=dict)
    next_offsets: dict[Partition, int] = field(default_factory=dict)  # where the span ends, exclusive
    last_records: dict[Partition, Record] = field(default_factory=dict)
    newest_event_time_seconds: float | None = None
    spec: InputSpec | None = None  # of the first good sample, where the stream had none before this batch
    ended_by: int | None = None  # which of the foretold decisions ended the span, by its place in `obey`'s argument

    @property
    def x(self) -> npt.NDArray[np.generic]:
        """(B, ...) in the dtype of the input spec; B = len(trainable) > 0."""
        return np.stack([sample.x for sample in self.trainable])

    @property
    def labels(self) -> list[str]:
        return [sample.label for sample in self.trainable if sample.label is not None]


class BatchAssembler:
    """Decides for each record whether it is trained on, held out, a repeat, a dead letter, or erased.

    It changes none of the state it reads: what it decided takes effect when the learner steps on the batch, so that a
    batch that was begun can be dropped at a stop and its records read again. The order of the checks matters: a record
    that cannot be used is never remembered as seen, so that its replay from dead letters is not taken for a repeat.
    """

    def __init__(self, settings: LearnerSettings, recent_ids: RecentIds, hold_out: HoldOut, erasures: Erasures) -> None:
        self._settings = settings
        self._recent_ids = recent_ids
        self._hold_out = hold_out
        self._erasures = erasures
        self._ends: dict[tuple[Partition, int], int] = {}
        self._reset()

    def _reset(self) -> None:
        self._batch = MicroBatch()
        self._batch_ids: set[int] = set()
        self._batch_new_classes: set[str] = set()

    def obey(self, ends: Sequence[Mapping[Partition, int]]) -> None:
        """Recorded decisions, each the offsets (exclusive) where a span ended though it was not full.

        On one partition a span that reaches such an offset ends there, as it did the first time.
        """
        self._ends = {end: place for place, offsets in enumerate(ends) for end in offsets.items()}

    @property
    def pending_records(self) -> int:
        return self._batch.records

    @property
    def pending_offsets(self) -> Mapping[Partition, int]:
        """Where the span begun so far ends, exclusive."""
        return self._batch.next_offsets

    @property
    def is_complete(self) -> bool:
        """Enough trainable records, or so many records that the span must end, or a recorded decision says so."""
        return (
            len(self._batch.trainable) >= self._settings.batch_size
            or self._batch.records >= self._settings.max_records_per_batch
            or self._batch.ended_by is not None
        )

    def take(self) -> MicroBatch:
        """Hand the batch over and begin the next one."""
        batch = self._batch
        self._reset()
        return batch

    def discard(self) -> None:
        """Drop what was begun; its records are to be read again."""
        self._reset()

    def add(self, decoded: Decoded, spec: InputSpec | None, known_classes: Mapping[str, int]) -> None:
        """Put one record where it belongs.

        `spec` is the stream's, None before its first good sample: that one sets it, for the rest of the batch too.
        `known_classes` are those with a logit column.
        """
        batch, record = self._batch, decoded.record
        partition = record.log_partition
        batch.records += 1
        batch.records_by_partition[partition] = batch.records_by_partition.get(partition, 0) + 1
        batch.next_offsets[partition] = record.offset + 1
        batch.last_records[partition] = record
        if self._ends:
            batch.ended_by = self._ends.get((partition, record.offset + 1), batch.ended_by)

        if self._is_erased(decoded):
            batch.erased.append(record)
            return
        sample = decoded.sample
        if sample is None:
            assert decoded.problem is not None
            batch.dead.append((record, decoded.problem))
            return
        problem = self._problem(sample, spec or batch.spec, known_classes)
        if problem is not None:
            batch.dead.append((record, problem))
            return
        name = identity(sample.source, sample.id)
        if self._settings.deduplication_window and (name in self._batch_ids or name in self._recent_ids):
            batch.duplicates.append(record)
            return
        self._batch_ids.add(name)
        if spec is None and batch.spec is None:
            batch.spec = sample.spec
        time = sample.event_time_seconds
        newest = batch.newest_event_time_seconds
        if time is not None and (newest is None or time > newest):
            batch.newest_event_time_seconds = time
        subject = self._hold_out.key(sample)
        if self._hold_out.chooses_key(subject):
            batch.held_out.append(sample)
            batch.held_out_ids.append(name)
        else:
            batch.trainable.append(sample)
            batch.trainable_ids.append(name)
            batch.subjects.append(subject)
            if sample.label is not None and sample.label not in known_classes:
                self._batch_new_classes.add(sample.label)

    def _is_erased(self, decoded: Decoded) -> bool:
        """Before anything else: what is erased is nobody's dead letter either, which would carry its bytes on."""
        if not self._erasures:
            return False
        record = decoded.record
        if decoded.sample is not None:
            key = self._hold_out.key(decoded.sample)
        else:
            subject = named_subject(record.headers)
            if subject is None:
                return False
            key = self._hold_out.subject_key(subject)
        return self._erasures.covers(key, record.log_partition, record.offset)

    def _problem(self, sample: Sample, spec: InputSpec | None, known_classes: Mapping[str, int]) -> BadRecord | None:
        """What only the state can know: another shape than the stream's, one class too many."""
        if spec is not None and sample.kind != spec.kind:
            return BadRecord(DeadLetterReason.WRONG_TYPE, f"this stream holds {spec.kind}, the record {sample.kind}")
        if spec is not None and sample.x.shape != spec.shape:
            return BadRecord(
                DeadLetterReason.WRONG_SHAPE,
                f"this stream's samples have shape {spec.shape}, this one {sample.x.shape}",
            )
        if sample.label not in known_classes and sample.label not in self._batch_new_classes:
            limit = self._settings.network.max_classes
            if len(known_classes) + len(self._batch_new_classes) >= limit:
                return BadRecord(
                    DeadLetterReason.TOO_MANY_CLASSES, f"label {sample.label!r} would be class {limit + 1} of {limit}"
                )
        return None
