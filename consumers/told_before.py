"""What this stream's learners have told before, read back from its own topics where snapshot and commit do not meet.

Two starts need it: after a fall-back to an older snapshot, whose records are learnt a second time and must not be told
a second time, until the learner is past where it fell from; and where the brokers have forgotten which snapshot was
committed last. In all others nothing is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from consumers import dead_letters, events
from consumers.log_gap import Gap, are_gaps
from consumers.record_source import RecordSource, read_records
from consumers.topics import dead_letters as dead_letters_topic
from consumers.topics import events as events_topic
from model_store.snapshot import OutboxMessage
from pipeline.record import Partition, Record
from pipeline.state import Json

_GapsJson: TypeAlias = "list[tuple[str, int, int, int]]"


@dataclass(slots=True)
class ToldBefore:
    """Dead letters by where they stood, events by their id, and the decisions among them."""

    dead_letters: set[tuple[str, int, int]] = field(default_factory=set)
    event_ids: set[str] = field(default_factory=set)
    decisions: list[dict[str, Json]] = field(default_factory=list)  # idle flushes
    gaps: set[tuple[str, int, int, int]] = field(default_factory=set)  # accepted ones, as `Gap.as_json`
    records_consumed: int = 0  # by the state that was farthest when it told of something

    def forget_dead_letters(self, gaps: Iterable[Gap]) -> None:
        """Where a log lost its tail or was made anew, other records than those told of stand at these offsets now.

        What was told of the new ones, before a fall-back over the gap, is forgotten too: told twice rather than lost.
        """
        for gap in gaps:
            if gap.next_offset <= gap.expected_offset:
                self.dead_letters = {
                    (topic, number, offset)
                    for topic, number, offset in self.dead_letters
                    if Partition(topic, number) != gap.partition or offset < gap.next_offset
                }

    def holds(self, message: OutboxMessage) -> bool:
        """Whether it stands in its topic already."""
        where = dead_letters.origin(message.headers)
        return where in self.dead_letters if where is not None else events.event_id(message.headers) in self.event_ids

    def reaches_past(self, offsets: Mapping[Partition, int], records_consumed: int) -> bool:
        """Whether something of it is about records from these offsets on, or was told by a state that had consumed more
        records than these."""
        ends = [end for decision in self.decisions for end in cast("list[tuple[str, int, int]]", decision["offsets"])]
        return (
            self.records_consumed > records_consumed
            or any(number >= offsets.get(Partition(topic, part), 0) for topic, part, number in self.dead_letters)
            or any(end > offsets.get(Partition(topic, part), 0) for topic, part, end in ends)
        )


class Reports:
    """The topics of a stream that its learner writes, seen from the learner.

    `positions` are offsets before which all was told before the state they are saved with. They may be too small, which
    costs time after a fall-back and nothing else: asking the brokers for them at every commit would cost more.
    """

    def __init__(self, open_source: Callable[[str], RecordSource], *, stream: str, branch: str) -> None:
        """`open_source(topic)` gives a source of one topic, which is closed after use."""
        self._open_source = open_source
        self._topics = (dead_letters_topic(stream), events_topic(stream))
        self._branch = branch
        self._positions: dict[Partition, int] = {}

    def open(self) -> None:
        """Note where the topics end now. Raises `SourceUnavailable`."""
        for topic in self._topics:
            with self._open_source(topic) as source:
                self._positions.update(source.end_offsets())

    @property
    def positions(self) -> list[Json]:
        """For the manifest; `read_back` takes it."""
        return [[p.topic, p.number, offset] for p, offset in sorted(self._positions.items())]

    def note(self, told: Iterable[OutboxMessage]) -> None:
        """These were told: where a topic has one partition, it has grown by at least as many offsets."""
        counts: dict[str, int] = {}
        for message in told:
            counts[message.topic] = counts.get(message.topic, 0) + 1
        for topic, count in counts.items():
            partitions = [partition for partition in self._positions if partition.topic == topic]
            if len(partitions) == 1:
                self._positions[partitions[0]] += count

    def read_back(self, positions: Json, stop: threading.Event | None = None) -> ToldBefore:
        """Everything told since these positions. Raises `SourceUnavailable`, also where `stop` is set meanwhile."""
        since = {Partition(t, n): offset for t, n, offset in cast("list[tuple[str, int, int]]", positions or [])}
        told = ToldBefore()
        for topic in self._topics:
            with self._open_source(topic) as source:
                for record in _since(source, since, stop):
                    self._note(told, record)
        return told

    def _note(self, told: ToldBefore, record: Record) -> None:
        where = dead_letters.origin(record.headers)
        if where is not None:
            told.dead_letters.add(where)
            return
        name = events.event_id(record.headers)
        if name is not None:
            told.event_ids.add(name)
        about = events.event_data(record, branch=self._branch)
        records = None if about is None else about.get("records_consumed")
        if type(records) is int:
            told.records_consumed = max(told.records_consumed, records)
        flush = events.event_data(record, kind="idle_flush", branch=self._branch)
        if flush is not None and _are_offsets(flush.get("offsets")):
            told.decisions.append({"kind": "idle_flush", "offsets": flush["offsets"]})
        accepted = events.event_data(record, kind="accepted_gap", branch=self._branch)
        if accepted is not None and are_gaps(accepted.get("gaps")):
            told.gaps.update((t, n, wanted, found) for t, n, wanted, found in cast(_GapsJson, accepted["gaps"]))


def _are_offsets(value: Json) -> bool:
    """Whether it is [[topic, partition, offset], ...]: anybody who may write to the topic can write what looks like an
    event of ours."""
    return isinstance(value, list) and all(
        isinstance(entry, list) and [type(part) for part in entry] == [str, int, int] for entry in value
    )


def _since(source: RecordSource, positions: Mapping[Partition, int], stop: threading.Event | None) -> Iterable[Record]:
    """Every record from these positions to where the topic ends now."""
    beginnings, ends = source.beginning_offsets(), source.end_offsets()
    # A topic that was made anew is shorter than the position: all of it was told since.
    begin = {
        partition: offset
        if beginning <= (offset := positions.get(partition, beginning)) <= ends[partition]
        else beginning
        for partition, beginning in beginnings.items()
    }
    return read_records(source, begin, ends, stop)
