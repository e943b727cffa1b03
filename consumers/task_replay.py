"""The matrix R of a stream whose records carry `ce_task`: learn the log again, stop after each task, look at all.

R[i, j] is the accuracy on task j's held-out records after the last record of task i (Lopez-Paz and Ranzato 2017). The
learner under test never reads ce_task; only this evaluation does, offline. It commits nothing and writes to no topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from consumers.record_source import RecordSource
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.device import to_device
from pipeline.evaluation.hold_out import HoldOut
from pipeline.evaluation.r_matrix import RMatrix
from pipeline.learner import Learner
from pipeline.network import Network
from pipeline.record import Partition
from pipeline.sample import Decoded, InputSpec, Sample
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StreamLearner
from pipeline.user_error import UserError

# Held-out records of one task that are kept for its column of R; more would cost memory and say little.
_HELD_OUT_PER_TASK = 2_000
_ROWS = 256  # of one pass of the untrained network


@dataclass(slots=True)
class _Task:
    last_offsets: dict[Partition, int] = field(default_factory=dict)
    held_out: list[Sample] = field(default_factory=list)

    @property
    def x(self) -> npt.NDArray[np.generic]:
        return np.stack([sample.x for sample in self.held_out])

    @property
    def labels(self) -> list[str]:
        return [sample.label or "" for sample in self.held_out]


@dataclass(frozen=True, slots=True)
class TaskReplay:
    """R with the tasks' names in the order in which they first came, and how many held-out records judge each."""

    tasks: tuple[str, ...]
    held_out: tuple[int, ...]
    matrix: RMatrix


def replay_tasks(
    source: RecordSource, settings: LearnerSettings, *, progress: Callable[[str, int, int], None] = lambda *_: None
) -> TaskReplay:
    """Learn the whole log from its beginning and fill R.

    1. Read the log once: where each task's last record lies, and what of it is held out.
    2. Read it again and learn; where the last record of a task has passed, evaluate all tasks.
    3. The accuracies at random initialisation, for forward transfer.

    `progress(stage, records done, records in all)`. Raises `UserError` where no record carries ce_task, or a task has
    nothing held out, and `SourceUnavailable` where the brokers go away.
    """
    # 1.
    tasks = _scan(source, settings, progress)
    names = tuple(tasks)
    # 2.
    learner = StreamLearner(settings)
    rows: list[list[float]] = []
    done: dict[Partition, int] = {}
    for decoded in _read(source, settings, progress, "learning"):
        learner.add(decoded)
        while learner.assembler.is_complete:
            learner.step(learner.assembler.take())
        done[decoded.record.log_partition] = decoded.record.offset
        while len(rows) < len(names) and _has_passed(tasks[names[len(rows)]], done):
            rows.append([_accuracy(learner, task) for task in tasks.values()])
    while learner.flush() is not None:
        pass
    if learner.learner is None:
        raise UserError(f"every record is held out; lower learner.hold_out.share (now {settings.hold_out.share})")
    rows[-1] = [_accuracy(learner, task) for task in tasks.values()]  # the last partial batch belongs to the last task
    # 3.
    untrained = Learner(settings, learner.learner.spec).network.eval()
    if untrained.columns < len(learner.class_names):
        untrained.grow(len(learner.class_names))
    random = [_random_accuracy(untrained, learner.class_columns, task) for task in tasks.values()]
    return TaskReplay(
        tasks=names,
        held_out=tuple(len(task.held_out) for task in tasks.values()),
        matrix=RMatrix(np.array(rows, dtype=np.float64), np.array(random, dtype=np.float64)),
    )


def _scan(
    source: RecordSource, settings: LearnerSettings, progress: Callable[[str, int, int], None]
) -> Mapping[str, _Task]:
    hold_out = HoldOut(settings.hold_out)
    tasks: dict[str, _Task] = {}
    subjects: set[str] = set()
    spec: InputSpec | None = None
    for decoded in _read(source, settings, progress, "reading"):
        sample = decoded.sample
        if sample is None:
            continue
        spec = spec or sample.spec
        if sample.task is None or sample.spec != spec:  # of another shape: a dead letter to the learner
            continue
        task = tasks.setdefault(sample.task, _Task())
        task.last_offsets[decoded.record.log_partition] = decoded.record.offset
        identity = f"{sample.task}/{sample.subject or f'{sample.source}/{sample.id}'}"
        if len(task.held_out) < _HELD_OUT_PER_TASK and identity not in subjects and hold_out.chooses(sample):
            subjects.add(identity)
            task.held_out.append(sample)
    if not tasks:
        raise UserError(
            "no record of this stream carries ce_task, so there is no R-matrix; `palimpsest produce` sends it"
        )
    for name, task in tasks.items():
        if not task.held_out:
            raise UserError(
                f"no record of task {name!r} is held out; raise learner.hold_out.share (now {settings.hold_out.share})"
            )
    return tasks


def _read(
    source: RecordSource, settings: LearnerSettings, progress: Callable[[str, int, int], None], stage: str
) -> Iterator[Decoded]:
    """Every record from the beginning to where the log ends now. Raises `SourceUnavailable`."""
    decode = RecordDecoder(settings.input).decode
    beginnings, ends = source.beginning_offsets(), source.end_offsets()
    total = sum(ends[partition] - beginnings[partition] for partition in ends)
    source.seek(beginnings)
    read = 0
    while any(position < ends[partition] for partition, position in source.positions().items()):
        records = source.poll(500, 0.5)
        if not records:
            source.end_offsets()  # brokers that are away poll as an empty log does; this raises where they are
        for record in records:
            if record.offset < ends[record.log_partition]:
                read += 1
                yield decode(record)
        progress(stage, read, total)


def _has_passed(task: _Task, done: Mapping[Partition, int]) -> bool:
    return all(done.get(partition, -1) >= offset for partition, offset in task.last_offsets.items())


def _accuracy(learner: StreamLearner, task: _Task) -> float:
    """A class that has no column yet counts as wrong: its records are judged like all others."""
    if learner.learner is None:
        return 0.0
    columns = np.array([learner.class_columns.get(label, -1) for label in task.labels])
    return float((learner.learner.predict_columns(task.x) == columns).mean())


def _random_accuracy(untrained: Network, class_columns: Mapping[str, int], task: _Task) -> float:
    """Accuracy at random initialisation over all classes that the stream turned out to have."""
    classes = len(class_columns)
    device = untrained.head.weight.device
    predicted: list[npt.NDArray[np.int64]] = []
    with torch.inference_mode():
        for start in range(0, len(task.held_out), _ROWS):
            logits_BK, _ = untrained(to_device(task.x[start : start + _ROWS], device))
            predicted.append(logits_BK[:, :classes].argmax(1).cpu().numpy())
    columns = np.array([class_columns.get(label, -1) for label in task.labels])
    return float((np.concatenate(predicted) == columns).mean())
