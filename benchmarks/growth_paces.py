"""How long an update takes at each checkpoint: their learners go on side by side, a few updates each in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.growing_stream import Stream
from model_store.snapshot_store import SnapshotStore
from pipeline.device import configure_torch
from pipeline.sample import Decoded
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StepReport, StreamLearner


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the learner of one checkpoint took, in turns with the others; milliseconds."""

    stream: str
    records: int
    update_median: float
    update_p90: float
    update_processor_median: float  # the training thread's time on a processor: less of the machine's other work in it
    turn_medians: tuple[float, ...]  # of the updates of each turn
    stages: Mapping[str, float]  # medians: draw, forward, backward, optimizer, insert, intake
    evaluation_median: float | None  # None: none was due
    evaluations: int


def side_by_side(streams: Sequence[Stream], folder: Path, *, turns: int, updates: int) -> list[Pace]:
    """Every checkpoint of every stream goes on, a few updates at a time."""
    configure_torch(LearnerSettings())
    racers = [_Racer(stream, records, folder / stream.name) for stream in streams for records in stream.checkpoints]
    for turn in range(turns + 1):
        for racer in racers:
            racer.run(updates)
            if turn == 0:
                racer.forget()  # the first turn warms up
    return [racer.pace() for racer in racers]


@dataclass(frozen=True, slots=True)
class _Timed:
    seconds: float
    processor_seconds: float
    report: StepReport


class _Racer:
    def __init__(self, stream: Stream, records: int, folder: Path) -> None:
        self._stream = stream
        self._records = records
        found = SnapshotStore(folder / str(records)).newest_whole()
        assert found.snapshot is not None, f"{folder} holds no snapshot of {records} records"
        self._learner = StreamLearner(stream.settings)
        self._learner.load_state(found.snapshot.state)
        self._samples = self._known_samples()
        self._turns: list[list[_Timed]] = []

    def _known_samples(self) -> Iterator[Decoded]:
        """What comes next, but for classes that are new: a growth of the head is no update like the others."""
        known = set(self._learner.class_names)
        return (decoded for decoded in self._stream.samples(self._records) if _label(decoded) in known)

    def run(self, updates: int) -> None:
        turn: list[_Timed] = []
        while len(turn) < updates:
            if self._learner.add(next(self._samples)):
                batch = self._learner.assembler.take()
                began, processor_began = time.perf_counter(), time.thread_time()
                report = self._learner.step(batch)
                turn.append(_Timed(time.perf_counter() - began, time.thread_time() - processor_began, report))
        self._turns.append(turn)

    def forget(self) -> None:
        self._turns.clear()

    def pace(self) -> Pace:
        plain = [[timed for timed in turn if "evaluate" not in timed.report.seconds] for turn in self._turns]
        updates = [timed for turn in plain for timed in turn]
        evaluations = [
            1000 * timed.report.seconds["evaluate"]
            for turn in self._turns
            for timed in turn
            if timed.report.evaluation is not None
        ]
        stages = ("draw", "forward", "backward", "optimizer", "insert", "intake")
        return Pace(
            stream=self._stream.name,
            records=self._records,
            update_median=1000 * statistics.median(timed.seconds for timed in updates),
            update_p90=1000 * float(np.percentile([timed.seconds for timed in updates], 90)),
            update_processor_median=1000 * statistics.median(timed.processor_seconds for timed in updates),
            turn_medians=tuple(1000 * statistics.median(timed.seconds for timed in turn) for turn in plain),
            stages={
                stage: 1000 * statistics.median(timed.report.seconds[stage] for timed in updates) for stage in stages
            },
            evaluation_median=statistics.median(evaluations) if evaluations else None,
            evaluations=len(evaluations),
        )


def _label(decoded: Decoded) -> str:
    assert decoded.sample is not None
    assert decoded.sample.label is not None
    return decoded.sample.label
