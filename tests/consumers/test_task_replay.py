"""R of a stream with tasks: what is evaluated, when, and on what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers.memory_record_source import InMemoryRecordSource
from consumers.record_source import SourceUnavailable
from consumers.task_replay import TaskReplay, replay_tasks
from pipeline.record import Partition, Record
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StreamLearner
from pipeline.user_error import UserError
from tests.consumers.digit_records import Written, digit, digit_stream
from tests.consumers.learner_world import World, learner_settings, run

SETTINGS = learner_settings(
    batch_size=5, optimizer={"learning_rate": 0.1}, replay={"capacity": 150, "draw_size": 48}, hold_out={"share": 0.2}
)


def replay(
    folder: Path, records: Sequence[Written], settings: LearnerSettings = SETTINGS, **options: Any
) -> TaskReplay:
    world = World(folder, settings)
    world.write(records)
    world.log.append_marker()  # an offset past the last record, as a transaction leaves it
    found = replay_tasks(InMemoryRecordSource(world.log), settings, **options)
    assert world.commits.messages == []
    assert world.commits.committed == {}
    assert not list(folder.iterdir()), "it writes nothing anywhere"
    return found


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> TaskReplay:
    return replay(tmp_path_factory.mktemp("replay"), digit_stream(150))


def test_tasks_come_in_their_order_and_future_ones_are_unknown(learnt: TaskReplay) -> None:
    assert learnt.tasks == ("0", "1", "2")
    assert learnt.matrix.R.shape == (3, 3)
    assert all(count > 10 for count in learnt.held_out)
    assert np.all(np.triu(learnt.matrix.R, k=1) == 0), "the classes of later tasks have no column yet"
    assert np.all(learnt.matrix.R.diagonal() > 0.3)
    assert learnt.matrix.accuracy > 0.5
    # Six classes: an untrained network is right about one time in six, and must not know anything.
    assert np.all(learnt.matrix.b < 0.6)
    assert learnt.matrix.forward_transfer == pytest.approx(-learnt.matrix.b[1:].mean())


def test_the_last_row_is_the_learner_at_the_end_of_the_log(learnt: TaskReplay, tmp_path: Path) -> None:
    """Worked out beside it: the process's learner on the same log, judged on its own hold-outs, two classes a task."""
    world = World(tmp_path, SETTINGS)
    world.write(digit_stream(150))
    process = world.process()
    process.start()
    run(process)
    learner: StreamLearner = process.learner
    for task, (first, second) in enumerate((("0", "1"), ("2", "3"), ("4", "5"))):
        right = count = 0
        for label in (first, second):
            x = learner.hold_out.samples(label)
            right += int((learner.predict_columns(x) == learner.class_columns[label]).sum())
            count += len(x)
        assert learnt.held_out[task] == count
        assert learnt.matrix.R[-1, task] == pytest.approx(right / count)


def test_rows_are_evaluated_where_the_last_record_of_their_task_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumed: list[int] = []
    original = StreamLearner.step

    def spy(self: StreamLearner, batch: Any) -> Any:
        report = original(self, batch)
        consumed.append(report.records_consumed)
        return report

    monkeypatch.setattr(StreamLearner, "step", spy)
    rows: list[tuple[str, int, int]] = []
    records = [digit(item, task="first") for item in range(60)] + [
        digit(item, task="second") for item in range(60, 100)
    ]
    found = replay(tmp_path, records, progress=lambda stage, done, total: rows.append((stage, done, total)))
    assert found.tasks == ("first", "second")
    assert consumed[-1] == 100, "the partial batch at the end is learnt"
    assert rows[-1] == ("learning", 100, 101)  # 101 offsets, one of them a marker
    assert {stage for stage, _, _ in rows} == {"reading", "learning"}
    assert found.matrix.R[0, 1] > 0.1, "tasks that share their classes: the first knows something of the second"


def test_bad_records_and_records_without_a_task_do_no_harm(tmp_path: Path) -> None:
    odd = Written(
        value=b'{"payload": [1.0]}',
        headers=(("content-type", b"application/json"), ("ce_label", b"1"), ("ce_task", b"0")),
    )
    records = [*digit_stream(60), *[odd] * 40, digit(900)]
    assert replay(tmp_path, records).tasks == ("0", "1", "2")


def test_a_stream_without_tasks_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no record of this stream carries ce_task"):
        replay(tmp_path, [digit(item) for item in range(20)])


def test_a_task_without_held_out_records_is_named(tmp_path: Path) -> None:
    none = learner_settings(hold_out={"share": 0.0})
    with pytest.raises(UserError, match=r"no record of task '0' is held out; raise learner.hold_out.share \(now 0.0\)"):
        replay(tmp_path, digit_stream(20), none)


def test_a_log_of_held_out_records_alone_is_named(tmp_path: Path) -> None:
    every = learner_settings(hold_out={"share": 1.0})
    with pytest.raises(UserError, match="every record is held out"):
        replay(tmp_path, digit_stream(20), every)


def test_brokers_that_go_away_end_it(tmp_path: Path) -> None:
    """They poll as an empty log does; asked where the log ends, they do not answer."""
    world = World(tmp_path, SETTINGS)
    world.write(digit_stream(20))

    class GoesAway(InMemoryRecordSource):
        polls = 0

        def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
            self.polls += 1
            return super().poll(10, timeout_seconds) if self.polls == 1 else []

        def end_offsets(self) -> dict[Partition, int]:
            if self.polls > 1:
                raise SourceUnavailable("away")
            return super().end_offsets()

    with pytest.raises(SourceUnavailable, match="away"):
        replay_tasks(GoesAway(world.log), SETTINGS)
