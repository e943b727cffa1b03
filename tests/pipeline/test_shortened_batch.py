"""A batch that is complete earlier without its culprits: it ends there, and what is left begins the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import pytest

from pipeline import keyed_randomness
from pipeline.record import Partition, Record
from pipeline.sample import BadRecord, DeadLetterReason, Decoded, Sample
from pipeline.settings import LearnerSettings
from pipeline.state import fingerprint, join, split
from pipeline.stream_learner import StepReport, StreamLearner, idle_flush

PARTITION = Partition("t", 0)
POISON = 1e38  # a proper float32
ROWS = 10  # of an update
RECORDS = 64  # of a batch, at most
COUNT = 200  # of a stream

Making = Callable[[int], Sample]


def settings(**changes: Any) -> LearnerSettings:
    return LearnerSettings.model_validate(
        {
            "device": "cpu",
            "batch_size": ROWS,
            "max_records_per_batch": RECORDS,
            "hold_out": {"share": 0.1},
            "network": {"options": {"hidden": [8]}, "initial_columns": 2, "max_classes": 2},
            "optimizer": {"learning_rate": 0.05, "momentum": 0.9},
            "replay": {"capacity": 30, "draw_size": 8},
        }
        | changes
    )


def sample(number: int, label: str, *, poison: bool = False, values: int = 4, id: str | None = None) -> Sample:
    x = keyed_randomness.generator(5, "test shortened batch", number).normal(0, 0.3, values).astype(np.float32)
    x[:] = POISON if poison else x
    # a subject of its own for culprits, which the hold-out leaves alone
    return Sample(x=x, kind="vector", label=label, source="s", id=id or str(number), subject="p" if poison else None)


def sets_the_shape(number: int) -> Sample:
    """All others are of another shape than the first record."""
    return sample(number, "ab"[number % 2], poison=number == 0, values=3 if number == 0 else 4)


def takes_the_last_column(number: int) -> Sample:
    """And is in one batch with another culprit, which lies where that batch will no longer reach."""
    if number == 1:
        return sample(number, "last", poison=True)
    if number == 0 or 55 < number < 64:
        return sample(number, "a", poison=number == 60)
    return sample(number, "b")


def comes_first_under_its_id(number: int) -> Sample:
    """Mended copies of it follow, with two more culprits among what is then trainable."""
    if number in (7, 9):
        return sample(number, "a", poison=True)
    return sample(number, "ab"[number % 2], poison=number == 0, id="same" if number in (0, 3, 5) else None)


MAKINGS = {
    sets_the_shape: [0],
    takes_the_last_column: [1, 60],
    comes_first_under_its_id: [0, 7, 9],
}


def stream(making: Making, *, dead: Sequence[int] = (), count: int = COUNT) -> list[Decoded]:
    """With `dead`, these were dead letters before anybody looked."""
    bad = BadRecord(DeadLetterReason.NO_LABEL, "none")
    return [
        Decoded(Record("t", 0, number, b""), None, bad)
        if number in dead
        else Decoded(Record("t", 0, number, b""), making(number))
        for number in range(count)
    ]


def learn(learner: StreamLearner, records: Sequence[Decoded]) -> list[StepReport]:
    """To the end of the log, and what is left there too."""
    reports = [learner.step(learner.assembler.take()) for decoded in records if learner.add(decoded)]
    return reports + flushed(learner)


def flushed(learner: StreamLearner) -> list[StepReport]:
    reports = []
    while (report := learner.flush()) is not None:
        reports.append(report)
    return reports


def without_window(learner: StreamLearner) -> str:
    return fingerprint({name: value for name, value in learner.state().items() if name != "poison"})


def culprits_of(reports: Sequence[StepReport]) -> list[int]:
    dead = [entry for report in reports for entry in report.batch.dead]
    return [where.offset for where, problem in dead if problem.reason is DeadLetterReason.NOT_LEARNABLE]


def spans(reports: Sequence[StepReport]) -> list[tuple[int, int, list[str]]]:
    """Where each batch ended, how many records it held, and the ids of those that were learnt."""
    return [
        (report.batch.next_offsets[PARTITION], report.batch.records, [each.id for each in report.batch.trainable])
        for report in reports
    ]


def check_that_spans_are_whole(reports: Sequence[StepReport], count: int = COUNT) -> None:
    """No record is lost and none comes twice."""
    end = 0
    for report in reports:
        batch = report.batch
        end += batch.records
        assert batch.next_offsets == {PARTITION: end}
        assert batch.records_by_partition == {PARTITION: batch.records}
        assert batch.last_records[PARTITION].offset == end - 1
        parts = (batch.trainable, batch.held_out, batch.duplicates, batch.dead, batch.erased)
        assert sum(len(part) for part in parts) == batch.records
    assert end == count


@pytest.mark.parametrize(("making", "culprits"), MAKINGS.items())
def test_no_update_is_larger_and_all_is_as_if_the_culprits_had_been_dead_letters(
    making: Making, culprits: list[int]
) -> None:
    """Bit for bit, up to a batch of fewer rows: one that lacks rows without its culprits is not filled up again."""
    learner, clean = StreamLearner(settings()), StreamLearner(settings())
    reports = learn(learner, stream(making))
    expected = learn(clean, stream(making, dead=culprits))
    assert culprits_of(reports) == culprits
    check_that_spans_are_whole(reports)
    assert max(len(report.batch.trainable) for report in reports) == ROWS
    assert learner.records_consumed == COUNT
    full = list(takewhile(lambda report: len(report.batch.trainable) == ROWS, reports))
    assert spans(full) == spans(expected)[: len(full)]
    if making is sets_the_shape:
        assert len(full) >= len(reports) - 1
        assert spans(reports) == spans(expected)
        assert without_window(learner) == without_window(clean)
    elif making is takes_the_last_column:
        assert full[0].batch.records < full[-1].batch.next_offsets[PARTITION] < 60, "the other one is judged later"


@pytest.mark.parametrize("making", MAKINGS)
def test_a_kill_at_every_batch_s_end_changes_nothing(making: Making) -> None:
    """What was cut off is read again by a learner that has not seen it, and judged alike."""
    whole = StreamLearner(settings())
    expected = learn(whole, stream(making))
    learner, reports = StreamLearner(settings()), list[StepReport]()
    while learner.records_consumed < COUNT:
        records = stream(making)[learner.records_consumed :]
        complete = next((decoded for decoded in records if learner.add(decoded)), None)
        report = learner.flush() if complete is None else learner.step(learner.assembler.take())
        assert report is not None
        reports.append(report)
        state = join(*split(learner.state()))
        learner = StreamLearner(settings())
        learner.load_state(state)
        assert fingerprint(learner.state()) == fingerprint(state)
    assert spans(reports) == spans(expected)
    assert fingerprint(learner.state()) == fingerprint(whole.state())


@pytest.mark.parametrize("making", MAKINGS)
def test_a_batch_may_be_stepped_on_as_soon_as_it_is_complete(making: Making) -> None:
    lazy, eager = StreamLearner(settings()), StreamLearner(settings())
    expected = learn(lazy, stream(making))
    reports = []
    for decoded in stream(making):
        eager.add(decoded)
        while eager.assembler.is_complete:
            reports.append(eager.step(eager.assembler.take()))
    reports += flushed(eager)
    assert spans(reports) == spans(expected)
    assert fingerprint(eager.state()) == fingerprint(lazy.state())


def test_a_stop_drops_what_was_cut_off() -> None:
    learner = StreamLearner(settings())
    reports = []
    for decoded in stream(sets_the_shape)[:RECORDS]:
        if learner.add(decoded):
            reports.append(learner.step(learner.assembler.take()))
    (report,) = reports
    assert learner.assembler.is_complete, "the next batch is there"
    learner.discard_pending()
    assert learner.assembler.pending_records == 0
    assert learner.flush() is None
    assert learner.records_consumed == report.batch.next_offsets[PARTITION] < RECORDS
    reports += learn(learner, stream(sets_the_shape)[learner.records_consumed :])
    check_that_spans_are_whole(reports)


def test_a_flush_of_a_batch_that_becomes_shorter_is_one_decision_that_a_replay_obeys() -> None:
    """30 records came, then none for a while: that is where a span ends, and neither before nor after."""
    records = stream(sets_the_shape)
    first = StreamLearner(settings())
    for decoded in records[:30]:
        assert not first.add(decoded)
    reports = flushed(first)
    assert len(reports) > 2
    check_that_spans_are_whole(reports, 30)
    assert first.decisions == [idle_flush({PARTITION: 30})]
    reports += learn(first, records[30:])
    check_that_spans_are_whole(reports)

    # killed after each of its batches, and the state alone says what was decided
    replay, replayed = StreamLearner(settings()), list[StepReport]()
    replay.obey(first.decisions)
    while replay.records_consumed < COUNT:
        rest = records[replay.records_consumed :]
        assert any(replay.add(decoded) for decoded in rest), "the last span ends by a decision, too"
        replayed.append(replay.step(replay.assembler.take()))
        state = replay.state()
        replay = StreamLearner(settings())
        replay.load_state(state)
        if replay.records_consumed >= 30:
            replay.obey(first.decisions)
    assert spans(replayed) == spans(reports)
    assert fingerprint(replay.state()) == fingerprint(first.state())
