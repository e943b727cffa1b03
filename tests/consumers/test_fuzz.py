"""Malformed records through codec and learner: none ends it, each is accounted for, and memory stays flat."""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from consumers import dead_letters, topics
from consumers.learner_process import LearnerProcess
from consumers.memory_record_source import InMemoryLog
from consumers.observers import Observer
from model_store.snapshot import OutboxMessage
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.record import Record
from pipeline.sample import DeadLetterReason, InputKind
from pipeline.settings import LearnerSettings
from pipeline.state import fingerprint
from pipeline.stream_learner import StepReport, StreamLearner
from tests.consumers.digit_records import Written
from tests.consumers.fuzzed_records import JPEG, JSON, NPY, PNG, TEXT, fuzzed
from tests.consumers.learner_world import STREAM, World, learner_settings, run

SEED = 20
CHUNK = 1_000
KINDS: tuple[InputKind, ...] = ("image", "vector", "text")
# Three quarters of the log kept in memory would be 90 MB and more; half of that are dead letters.
MOST_GROWTH_BYTES = 20_000_000
# What each stream must have met with, so that nobody mistakes a stream of good records for a fuzzed one.
REASONS = {
    "no_label", "empty_label", "label_not_utf8", "label_too_long", "too_many_classes", "no_payload",
    "unknown_content_type", "broken_image", "broken_array", "broken_json", "wrong_shape", "wrong_type", "not_finite",
    "text_not_utf8", "bad_header", "image_too_large", "payload_too_large",
}  # fmt: skip


class ForgetfulLog(InMemoryLog):
    """Its records can be let go of, as a broker's retention does, and their memory with them."""

    def forget(self) -> None:
        (partition,) = self.partitions
        self.truncate_before(partition.number, self.end(partition))
        self._records[partition][:] = [None] * self.end(partition)


@dataclass
class Tally(Observer):
    """What became of the records, by step; of the dead and the repeats, which ones."""

    counts: Counter[str] = field(default_factory=Counter)
    repeats: set[int] = field(default_factory=set)
    dead: dict[int, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    consumed: int = 0

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        batch = report.batch
        parts = {
            "trained": len(batch.trainable),
            "held out": len(batch.held_out),
            "repeats": len(batch.duplicates),
            "dead": len(batch.dead),
            "erased": len(batch.erased),
        }
        assert sum(parts.values()) == batch.records
        self.counts.update(parts)
        self.consumed = report.records_consumed
        self.repeats.update(record.offset for record in batch.duplicates)
        self.dead.update((record.offset, str(problem.reason)) for record, problem in batch.dead)
        self.reasons.update(str(problem.reason) for _, problem in batch.dead)

    def forget_which(self) -> None:
        self.repeats.clear()
        self.dead.clear()


def fuzz_settings(**changes: Any) -> LearnerSettings:
    """A small network and small limits, so that every limit is met."""
    return learner_settings(
        **{
            "batch_size": 20,
            "deduplication_window": 2_000,
            "input": {"max_tokens": 16, "vocabulary_size": 300, "max_payload_bytes": 30_000, "max_image_pixels": 4_096},
            "network": {"max_classes": 24, "initial_columns": 4},
            "replay": {"capacity": 60, "draw_size": 20},
            "evaluation": {"every_records": 500, "min_class_samples": 2, "burst_records": 30},
            "hold_out": {"per_class": 20},
        }
        | changes
    )


def settings_for(kind: InputKind) -> LearnerSettings:
    options = {"layers": 1, "width": 16} if kind == "text" else {"hidden": [32]}
    return fuzz_settings(network={"max_classes": 24, "initial_columns": 4, "options": options})


def feed(world: World, process: LearnerProcess, tally: Tally, written: Sequence[Written]) -> None:
    """Learn these records, look at what became of each, and let go of them."""
    assert isinstance(world.log, ForgetfulLog)
    first = world.log.end(world.partition)
    world.write(written)
    run(process)
    assert tally.consumed == world.log.end(world.partition) == tally.counts.total()
    assert sorted(world.dead_offsets()) == sorted(tally.dead)
    for letter in world.dead_letters():
        where = dead_letters.origin(letter.headers)
        assert where is not None
        topic, partition, offset = where
        assert (topic, partition) == (topics.samples(STREAM), 0)
        check_dead_letter(letter, written[offset - first], tally.dead[offset])
    for offset, record in enumerate(written, start=first):
        fates = {"good": offset not in tally.dead, "repeat": offset in tally.repeats, "bad": offset in tally.dead}
        assert fates.get(record.fate, True), f"{record} did not become what it should: {tally.dead.get(offset)}"
    tally.forget_which()
    world.commits.messages.clear()
    world.log.forget()


def check_dead_letter(letter: OutboxMessage, record: Written, reason: str) -> None:
    """The record's own key, value and headers, and after them a known reason and one line about it."""
    own = len(record.headers)
    assert (letter.key, letter.value, letter.headers[:own]) == (record.key, record.value, record.headers)
    added = {name: (value or b"").decode() for name, value in letter.headers[own:]}
    assert added.keys() <= dead_letters.ADDED_HEADERS
    assert added[dead_letters.REASON] == DeadLetterReason(reason)
    detail = added[dead_letters.DETAIL]
    assert len(detail.splitlines()) == 1, repr(detail)
    assert len(detail) < 1_000, detail


def resident_bytes() -> int:
    """Of this process."""
    gc.collect()
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def learn_fuzzed(folder: Path, kind: InputKind, records: int) -> tuple[Tally, list[int]]:
    """What became of the records of this kind of stream, and the resident bytes after each of four quarters.

    At the end the newest snapshot is loaded into another learner, which must be the same one.
    """
    world = World(folder, settings_for(kind), log=ForgetfulLog(topics.samples(STREAM)))
    tally = Tally()
    # A full outbox must not wait for the next snapshot that is due
    process = world.process(observer=tally, snapshots={"every_records": None, "max_outbox_messages": 400})
    process.start()
    stream, resident = fuzzed(kind, seed=SEED, stop=records), list[int]()
    for _ in range(4):
        quarter = islice(stream, records // 4)
        while chunk := list(islice(quarter, CHUNK)):
            feed(world, process, tally, chunk)
        resident.append(resident_bytes())
    learner, newest = process.learner, world.newest()
    assert learner.spec is not None
    assert learner.spec.kind == kind
    assert learner.learner is not None
    assert newest.offsets == {world.partition: records}
    again = StreamLearner(world.settings)
    again.load_state(newest.state)
    assert fingerprint(again.state()) == fingerprint(newest.state) == fingerprint(learner.state())
    assert all(bool(tensor.isfinite().all()) for tensor in learner.learner.network.parameters())
    # Nothing is held against a process that starts on it.
    assert world.process().start()
    return tally, resident


@pytest.mark.parametrize("kind", KINDS)
def test_each_fuzzed_record_is_learnt_dropped_or_a_dead_letter(tmp_path: Path, kind: InputKind) -> None:
    tally, _ = learn_fuzzed(tmp_path, kind, 1_000)
    assert min(tally.counts[part] for part in ("trained", "held out", "repeats", "dead")) > 20, tally.counts


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "records"), [("image", 40_000), ("vector", 40_000), ("text", 20_000)])
def test_a_hundred_thousand_fuzzed_records_leave_memory_flat(tmp_path: Path, kind: InputKind, records: int) -> None:
    tally, resident = learn_fuzzed(tmp_path, kind, records)
    expected = REASONS | ({"not_learnable"} if kind == "vector" else set())
    assert tally.reasons.keys() == expected
    assert resident[-1] - resident[0] < MOST_GROWTH_BYTES, resident


# -- Hypothesis -----------------------------------------------------------------------------------------------------

HEADERS = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from(
                ["ce_id", "ce_source", "ce_subject", "ce_time", "ce_label", "CE_Label", "content-type", ""]
            ),
            st.text(max_size=5),
        ),
        st.one_of(st.none(), st.binary(max_size=20), st.text(max_size=10).map(str.encode)),
    ),
    max_size=5,
)
# Numbers that weights can bear, and those that are none.
NUMBERS = st.one_of(
    st.floats(-1e3, 1e3), st.sampled_from([float("nan"), float("inf"), -0.0, 10**400]), st.integers(-9, 9)
)
DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.just("\ud800")),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
PAYLOADS = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.text(max_size=10).map(lambda text: text.encode()),
    st.fixed_dictionaries({"payload": DOCUMENTS}, optional={"label": DOCUMENTS}).map(lambda d: json.dumps(d).encode()),
    st.lists(NUMBERS, min_size=1, max_size=2).map(lambda numbers: json.dumps({"payload": numbers}).encode()),
)


@st.composite
def drawn_records(draw: st.DrawFn) -> list[Record]:
    """Any bytes in any headers, most with a label and a content type that is known."""
    records = []
    for offset in range(draw(st.integers(1, 25))):
        headers = draw(HEADERS)
        if draw(st.integers(0, 3)):
            headers.append(("ce_label", draw(st.sampled_from([b"a", b"b", "\u00fc".encode()]))))
        if draw(st.integers(0, 3)):
            headers.append(("content-type", draw(st.sampled_from([JSON, JSON, TEXT, NPY, PNG, JPEG]))))
        records.append(Record("t", 0, offset, draw(PAYLOADS), headers=tuple(headers)))
    return records


@hypothesis_settings(max_examples=60)
@given(records=drawn_records())
def test_drawn_records_never_end_the_learner(records: list[Record]) -> None:
    settings: Any = fuzz_settings(batch_size=4, network={"max_classes": 3, "initial_columns": 2})
    decode, learner, tally = RecordDecoder(settings.input).decode, StreamLearner(settings), Tally()
    for record in records:
        if learner.add(decode(record)):
            tally.stepped(learner, learner.step(learner.assembler.take()))
    last = learner.flush()
    if last is not None:
        tally.stepped(learner, last)
    assert tally.consumed == len(records) == tally.counts.total()
    again = StreamLearner(settings)
    again.load_state(learner.state())
    assert fingerprint(again.state()) == fingerprint(learner.state())
