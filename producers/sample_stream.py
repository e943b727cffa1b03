"""Data set + schedule + seed -> the records of a stream, in order, without Kafka.

Legend: N records of the stream
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from pipeline import keyed_randomness
from pipeline.codec.cloud_event import CloudEvent
from pipeline.record import Record
from pipeline.state import Json
from pipeline.user_error import UserError
from producers.class_schedule import ClassSchedule
from producers.labelled_dataset import LabelledDataset
from producers.pools import pools_of

EVENT_TYPE = "io.palimpsest.sample"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingRecord:
    """One record on its way. `event.label` is None exactly where it is not `labelled`."""

    number: int  # from 0, over labelled and unlabelled ones
    labelled: bool
    event: CloudEvent


class SampleStream:
    """A stream that is the same every time it is iterated, and for the same arguments.

    - `records`: how many, labelled and unlabelled together; None: the data set once, as far as the schedule takes all.
    - The n-th draw of a class takes the n-th of its items in an order shuffled by the seed. When all have come once,
      they come again, in another order and slightly changed (`augmented_payload`); `ce_subject` names the original.
    - `unlabelled_share` of the records, to the nearest whole one and chosen by the seed, have no label.
    - `ce_id` is "<data set>-<seed>-<number>" and `ce_source` "palimpsest/produce/<data set>/<schedule>/<digest>", where
      the digest is over all other arguments and the items' classes. So producing the same stream twice repeats the same
      events, which readers can tell; and another stream of the same data set never passes for a repeat of it.
    """

    def __init__(
        self,
        dataset: LabelledDataset,
        schedule: ClassSchedule,
        *,
        seed: int = 0,
        records: int | None = None,
        classes_per_step: int = 2,
        shuffle_classes: bool = False,
        unlabelled_share: float = 0.0,
    ) -> None:
        """1. Which classes come when, 2. which items, 3. which of them lose their label. Raises `UserError`."""
        if records is not None and records < 1:
            raise UserError(f"a stream has at least one record; got --records {records}")
        if not 0.0 <= unlabelled_share <= 1.0:
            raise UserError(f"--unlabelled-share is a share from 0 to 1; got {unlabelled_share}")
        self.dataset = dataset
        self.schedule = schedule
        self.seed = seed
        # 1.
        pools, items = pools_of(dataset, classes_per_step=classes_per_step, shuffle_classes=shuffle_classes, seed=seed)
        plan = schedule.plan(pools, records, seed)
        if plan.turn_degrees_N is not None and not dataset.can_turn:
            raise UserError(
                f"schedule {schedule.name} turns images, and {dataset.name} holds none; take another schedule"
            )
        assert records is None or len(plan) == records, f"{schedule.name} planned {len(plan)} of {records} records"
        self.step_N = plan.step_N
        self.turn_degrees_N = plan.turn_degrees_N
        # 2.
        self.item_N = np.empty(len(plan), dtype=np.int64)
        self.repeat_N = np.empty(len(plan), dtype=np.int64)  # 0: the item's first time
        for pool, of_pool in enumerate(items):
            drawn = np.flatnonzero(plan.pool_N == pool)
            self.item_N[drawn] = _items_in_order(of_pool, len(drawn), seed, pool)
            self.repeat_N[drawn] = np.arange(len(drawn)) // len(of_pool)
        # 3.
        self.labelled_N = np.ones(len(plan), dtype=np.bool_)
        without = keyed_randomness.generator(seed, "unlabelled").permutation(len(plan))
        self.labelled_N[without[: round(unlabelled_share * len(plan))]] = False
        digest = _digest(
            dataset,
            schedule,
            records=records,
            classes_per_step=classes_per_step,
            shuffle_classes=shuffle_classes,
            unlabelled_share=float(unlabelled_share),
        )
        self._source = f"palimpsest/produce/{dataset.name}/{schedule.name}/{digest}"

    def __len__(self) -> int:
        return len(self.item_N)

    @property
    def labelled_count(self) -> int:
        """Records with a label."""
        return int(self.labelled_N.sum())

    def __iter__(self) -> Iterator[OutgoingRecord]:
        return (self.record(number) for number in range(len(self)))

    def record(self, number: int) -> OutgoingRecord:
        """The record of that number, with its payload made now. `ce_time` is for the sender to set."""
        item = int(self.item_N[number])
        payload, content_type = self._payload(number, item)
        labelled = bool(self.labelled_N[number])
        return OutgoingRecord(
            number=number,
            labelled=labelled,
            event=CloudEvent(
                id=f"{self.dataset.name}-{self.seed}-{number}",
                source=self._source,
                type=EVENT_TYPE,
                content_type=content_type,
                data=payload,
                subject=self.dataset.subject(item),
                label=self.dataset.classes[int(self.dataset.labels[item])] if labelled else None,
                task=str(self.step_N[number]),
            ),
        )

    def log(self, topic: str, partition: int = 0) -> Iterator[Record]:
        """The labelled records as they would lie in a log of one partition, from offset 0 on: for runs from memory."""
        for offset, number in enumerate(np.flatnonzero(self.labelled_N)):
            event = self.record(int(number)).event
            yield Record(
                topic=topic, partition=partition, offset=offset, value=event.data, headers=tuple(event.headers())
            )

    def _payload(self, number: int, item: int) -> tuple[bytes, str]:
        turn_degrees = 0.0 if self.turn_degrees_N is None else float(self.turn_degrees_N[number])
        if self.repeat_N[number] > 0:
            generator = keyed_randomness.generator(self.seed, "alteration", number)
            return self.dataset.augmented_payload(item, generator, turn_degrees)
        if turn_degrees != 0.0:
            return self.dataset.augmented_payload(item, None, turn_degrees)
        return self.dataset.payload(item)


def _digest(dataset: LabelledDataset, schedule: ClassSchedule, **arguments: Json) -> str:
    """8 hex digits over what decides, beside seed and number, which record is sent and with which label."""
    plan = {
        **arguments,
        "schedule": asdict(schedule),  # type: ignore[call-overload]  # every subclass is a dataclass
        "opened_as": dataset.opened_as,
        "classes": list(dataset.classes),
        "labels": _sha256(dataset.labels),
        "steps": None if dataset.steps is None else _sha256(dataset.steps),
    }
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:8]


def _sha256(numbers_N: npt.NDArray[np.int64]) -> str:
    return hashlib.sha256(numbers_N.astype("<i8").tobytes()).hexdigest()  # the same bytes on every machine


def _items_in_order(items: npt.NDArray[np.int64], count: int, seed: int, pool: int) -> npt.NDArray[np.int64]:
    """`count` of the pool's items: all of them in one shuffled order, then all in another, ..."""
    passes = -(-count // len(items))
    orders = [keyed_randomness.generator(seed, f"items/{pool}", number).permutation(items) for number in range(passes)]
    return np.concatenate(orders)[:count] if orders else np.empty(0, dtype=np.int64)
