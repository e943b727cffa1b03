"""What grows as classes and records come: the time of an update, the memory, evaluations, snapshots and recovery.

    python -m benchmarks.growth --json FILE
    python -m benchmarks.growth --resnet --json FILE          # also a network whose head is a small part of it
    python -m benchmarks.growth --quick --json FILE           # seconds; its figures say nothing

Made vectors of a few numbers are learnt from memory with the default settings, in streams of their own:

    together     classes come one after the other, from 10 at 10,000 records to 1,000 at 1,000,000
    records      10 classes all the while
    classes      10, 100 and 1,000 classes, each mixed from the start, until 10,000 records

At each checkpoint memory is read, and the state is written as a snapshot. At the end the states of all checkpoints are
loaded side by side and learn on in turns, a few updates each, so that the machine's other work weighs on all alike: the
time of an update is that of these turns, without the ones that were followed by an evaluation, which is timed apart. A
ratio is that of the last checkpoint to the first. Memory is that of the whole process (RSS), and of it the part that no
file stands behind, since libraries alone are hundreds of megabytes; beside it what parts of the state are in it: some
are bounded and not full at the first checkpoint (the newest 100,000 ids, 200 held-out samples a class).

`reservoirs` is a learner's process on images of 28 x 28 with snapshots, for each capacity: the snapshot's size, what
the learning stood still for it (as benchmarks/snapshot_stall.py defines it), and how long the newest snapshot takes to
be read, checked and made into a learner again. Evaluations are off there: they have turns of their own.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from benchmarks.command_line import write_result
from benchmarks.ingest import circumstances
from benchmarks.snapshot_stall import TurnWatch
from consumers import topics
from consumers.learner_process import LearnerProcess
from consumers.manifest_facts import ProcessFacts
from consumers.memory_commit_log import InMemoryCommitLog, InMemoryCommits
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.process_settings import RegistrySettings, SnapshotSettings, StreamSettings
from deploy.logs import configure_logs
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline import keyed_randomness
from pipeline.codec.cloud_event import CloudEvent
from pipeline.codec.image import encode_png
from pipeline.device import configure_torch
from pipeline.record import Record
from pipeline.sample import Decoded, InputKind, Sample
from pipeline.settings import LearnerSettings
from pipeline.state import StateTree
from pipeline.stream_learner import StepReport, StreamLearner

_NEVER = 10**9
# Samples are made so many at a time: each block by its own number, so that a stream goes on from anywhere.
_BLOCK = 500
# Half of the records are of the newest classes, half of all that have come, which are few of each.
_NEWEST = 10
_IMAGE_SIDE = 28
_MEGABYTE = 1e6

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What is learnt, and where it is looked at."""

    name: str
    classes: int
    records: int
    checkpoints: tuple[int, ...]  # records; the last is `records`
    arriving: bool  # classes come one after the other; else all are there from the start
    network: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    kind: InputKind
    shape: tuple[int, ...]

    def classes_at(self, record: int) -> int:
        """How many have come by then, this record's included."""
        return max(1, math.ceil((record + 1) * self.classes / self.records)) if self.arriving else self.classes

    def samples(self, begin: int = 0) -> Iterator[Decoded]:
        """Without end, from this record on; `begin` is a multiple of the block. After `records` no class comes."""
        for block in range(begin // _BLOCK, _NEVER):
            generator = keyed_randomness.generator(0, "growth/block", block)
            first = block * _BLOCK
            noise_BD = generator.standard_normal((_BLOCK, *self.shape), dtype=np.float32)
            picks_B = generator.random(_BLOCK)
            for row in range(_BLOCK):
                number = first + row
                known = self.classes_at(min(number, self.records - 1))
                if not self.arriving and number < known:
                    label = number  # each once at first: a thousand classes are all known early
                elif row % 2:
                    label = known - 1 - int(picks_B[row] * min(known, _NEWEST))
                else:
                    label = int(picks_B[row] * known)
                yield self._decoded(number, label, noise_BD[row])

    def _decoded(self, number: int, label: int, noise: npt.NDArray[np.float32]) -> Decoded:
        x: npt.NDArray[Any] = _centre(label, self.shape) + noise
        if self.kind == "image":
            x = np.clip(128 + 40 * x, 0, 255).astype(np.uint8)
        record = Record(topic=topics.samples(self.name), partition=0, offset=number, value=b"")
        name = f"{label:04d}"
        return Decoded(record, Sample(x=x, kind=self.kind, label=name, source="growth", id=str(number)))

    @property
    def settings(self) -> LearnerSettings:
        """The defaults but for the network, and for --evaluation-every."""
        return LearnerSettings.model_validate({"network": dict(self.network), "evaluation": dict(self.evaluation)})


_CENTRES: dict[tuple[int, tuple[int, ...]], npt.NDArray[np.float32]] = {}


def _centre(label: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Where a class's samples lie."""
    if (label, shape) not in _CENTRES:
        generator = keyed_randomness.generator(0, "growth/centre", label)
        _CENTRES[label, shape] = generator.standard_normal(shape, dtype=np.float32)
    return _CENTRES[label, shape]


# Following a stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Of this process, resident; megabytes."""

    all: float
    anonymous: float  # what no file stands behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How things stood when so many records had been consumed."""

    stream: str
    classes: int  # known to the network
    columns: int  # of its head
    records: int
    updates: int
    held_out_samples: int
    memory: Memory  # of the process, before anything was done here
    state_megabytes: Mapping[str, float]  # tensors, by parts of the state
    snapshot_megabytes: float
    copy_milliseconds: float
    write_milliseconds: float
    records_per_second: float  # since the checkpoint before, evaluations included
    evaluating_share: float  # of that time


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """One stream, in a process of its own."""

    checkpoints: tuple[Checkpoint, ...]
    memory_trail: tuple[tuple[int, Memory], ...]  # (records, memory)


def follow(stream: Stream, folder: Path) -> Followed:
    """Learn the stream; snapshots lie in folder/<records>."""
    settings = stream.settings
    configure_torch(settings)
    learner = StreamLearner(settings)
    checkpoints: list[Checkpoint] = []
    trail: list[tuple[int, Memory]] = []
    trail_every = max(_BLOCK, stream.records // 50)
    evaluating, since, began = 0.0, 0, time.perf_counter()
    for number, decoded in enumerate(stream.samples(), start=1):
        if learner.add(decoded):
            report = learner.step(learner.assembler.take())
            evaluating += report.seconds.get("evaluate", 0.0)
        if number % trail_every == 0:
            trail.append((number, memory_now()))
        if number in stream.checkpoints:
            seconds = time.perf_counter() - began
            checkpoints.append(
                _checkpoint(stream, learner, folder, number, (number - since) / seconds, evaluating / seconds)
            )
            print(f"{stream.name}: {number:,} records, {seconds:.0f} s since the last checkpoint", file=sys.stderr)
            evaluating, since, began = 0.0, number, time.perf_counter()
        if number == stream.records:
            break
    return Followed(checkpoints=tuple(checkpoints), memory_trail=tuple(trail))


def _checkpoint(
    stream: Stream, learner: StreamLearner, folder: Path, records: int, rate: float, evaluating_share: float
) -> Checkpoint:
    gc.collect()
    memory = memory_now()
    began = time.perf_counter()
    state = learner.state()
    copied = time.perf_counter()
    entry = SnapshotStore(folder / str(records)).write(Snapshot(generation=1, sequence=1, state=state, offsets={}))
    written = time.perf_counter()
    core = learner.learner
    assert core is not None, "records were learnt"
    return Checkpoint(
        stream=stream.name,
        classes=len(learner.class_names),
        columns=core.network.columns,
        records=records,
        updates=core.updates,
        held_out_samples=sum(learner.hold_out.count(label) for label in learner.hold_out.classes),
        memory=memory,
        state_megabytes={
            "reservoir": _tensor_megabytes(_part(state, "learner", "reservoir")),
            "learner": _tensor_megabytes(_part(state, "learner")),
            "recent_ids": _tensor_megabytes(_part(state, "recent_ids")),
            "hold_out": _tensor_megabytes(_part(state, "hold_out")),
            "forgetting": _tensor_megabytes(_part(state, "forgetting")),
            "all": _tensor_megabytes(state),
        },
        snapshot_megabytes=entry.bytes / _MEGABYTE,
        copy_milliseconds=1000 * (copied - began),
        write_milliseconds=1000 * (written - copied),
        records_per_second=rate,
        evaluating_share=evaluating_share,
    )


def _part(state: StateTree, *path: str) -> StateTree:
    for name in path:
        inner = state[name]
        assert isinstance(inner, dict)
        state = inner  # type: ignore[assignment]
    return state


def _tensor_megabytes(tree: StateTree) -> float:
    total = 0.0
    for value in tree.values():
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size() / _MEGABYTE
        elif isinstance(value, dict):
            total += _tensor_megabytes(value)  # type: ignore[arg-type]
    return total


def memory_now() -> Memory:
    """As the kernel says."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = {words[0]: int(words[1]) for words in lines if words and words[0] in ("VmRSS:", "RssAnon:")}
    return Memory(all=1024 * kilobytes["VmRSS:"] / _MEGABYTE, anonymous=1024 * kilobytes["RssAnon:"] / _MEGABYTE)


# Side by side


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
    evaluation_median: float | None  # of all hold-outs; None: none was due
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


# Reservoirs


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservoirCost:
    """What a reservoir of this capacity, full, costs; times in milliseconds, medians but for `stall_most`."""

    capacity: int
    snapshots: int
    snapshot_megabytes: float
    written_megabytes: float  # what was not linked from an older snapshot
    update: float
    copy: float  # learning stands still
    write: float  # beside the learning
    stall: float  # beyond the copy and one update
    stall_most: float
    load: float  # the newest snapshot, read and its sums checked; from the page cache
    rebuild: float  # a learner made of it, with the drift detector
    recovery: float  # both


def measure_reservoir(capacity: int, folder: Path, *, snapshots: int, every: int, repeats: int) -> ReservoirCost:
    """1. Fill the reservoir, then learn on, with a snapshot every so many records. 2. Begin again from the newest."""
    settings = LearnerSettings.model_validate(
        {"replay": {"capacity": capacity}, "evaluation": {"every_records": _NEVER, "burst_records": _NEVER}}
    )
    configure_torch(settings)
    # 1.
    until_full = math.ceil(capacity / (1 - settings.hold_out.share) * 1.1) + every
    log = _image_log(f"growth-{capacity}", until_full + (snapshots + 2) * every)
    source = InMemoryRecordSource(log)
    watch = TurnWatch()
    process = LearnerProcess(
        learner=StreamLearner(settings),
        source=source,
        commit_log=InMemoryCommitLog(InMemoryCommits(), "growth", "main", source.beginning_offsets()),
        store=SnapshotStore(folder / "snapshots"),
        facts=ProcessFacts(
            stream="growth", branch="main", topic=log.topic, cluster_id="memory", topic_id="growth", state_id="growth"
        ),
        stream_settings=StreamSettings(),
        snapshot_settings=SnapshotSettings(every_seconds=_NEVER, every_records=every),
        registry_settings=RegistrySettings(enabled=False),
        observer=watch,
    )
    process.start()
    watch.watch(process)
    process.run(stop=threading.Event(), until_idle_seconds=0.5)
    turns = np.array(watch.turns)
    calm = np.ones(len(turns), dtype=bool)
    for begun, through, _ in watch.commits:
        calm[begun : through + 1] = False
    full = [
        (begun, through, report)
        for begun, through, report in watch.commits
        if begun * settings.batch_size >= capacity and through < len(turns)  # the last one is waited for
    ]
    assert full, f"no snapshot of a full reservoir of {capacity} was made while records came"
    update = float(np.median(turns[calm]))
    stalls = []
    for begun, through, report in full:
        during = turns[begun : through + 1].copy()
        during[0] -= 1000 * report.copy_seconds  # the copy is made in the turn that was under way
        stalls.append(float(during.max()) - update)
    # 2.
    loads, rebuilds = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        found = SnapshotStore(folder / "snapshots").newest_whole()
        loaded = time.perf_counter()
        assert found.snapshot is not None, "it was written a moment ago"
        learner = StreamLearner(settings)
        learner.load_state(found.snapshot.state)
        learner.drift.update([False])  # it is rebuilt where it is first needed
        rebuilds.append(1000 * (time.perf_counter() - loaded))
        loads.append(1000 * (loaded - began))
    reports = [report for _, _, report in full]
    return ReservoirCost(
        capacity=capacity,
        snapshots=len(full),
        snapshot_megabytes=statistics.median(report.entry.bytes for report in reports) / _MEGABYTE,
        written_megabytes=statistics.median(report.entry.written_bytes or 0 for report in reports) / _MEGABYTE,
        update=update,
        copy=1000 * statistics.median(report.copy_seconds for report in reports),
        write=1000 * statistics.median(report.write_seconds for report in reports),
        stall=statistics.median(stalls),
        stall_most=max(stalls),
        load=statistics.median(loads),
        rebuild=statistics.median(rebuilds),
        recovery=statistics.median([a + b for a, b in zip(loads, rebuilds, strict=True)]),
    )


def _image_log(name: str, records: int) -> InMemoryLog:
    """Blotches of ten classes as PNGs."""
    log = InMemoryLog(topics.samples(name))
    generator = keyed_randomness.generator(0, "growth/images")
    block = (_IMAGE_SIDE // 7,) * 2
    patterns = [np.kron(generator.integers(0, 128, (7, 7)), np.ones(block, np.int64)) for _ in range(10)]
    for number in range(records):
        label = int(generator.integers(10))
        x_HW = patterns[label] + generator.integers(0, 128, (_IMAGE_SIDE, _IMAGE_SIDE))
        event = CloudEvent(
            id=str(number),
            source="growth",
            type="io.palimpsest.sample",
            content_type="image/png",
            data=encode_png(x_HW.astype(np.uint8)[None]),
            label=str(label),
        )
        log.append(event.data, headers=event.headers())
    return log


# The measurement


def streams_of(args: argparse.Namespace) -> list[Stream]:
    """Three checkpoints along each axis, evenly spaced in factors."""
    shares = (0.0, 0.5, 1.0)
    records = [_rounded(args.first_records * (args.records / args.first_records) ** share) for share in shares]
    classes = [round(args.first_classes * (args.classes / args.first_classes) ** share) for share in shares]
    evaluation = {} if args.evaluation_every is None else {"every_records": args.evaluation_every}
    vectors: dict[str, Any] = {
        "network": {},
        "evaluation": evaluation,
        "kind": "vector",
        "shape": (args.inputs,),
    }
    images: dict[str, Any] = {
        "evaluation": evaluation,
        "network": {"backbone": "resnet18", "options": {"width": 32}},
        "kind": "image",
        "shape": (1, 8, 8),
    }

    def mixed(name: str, count: int, until: int, network: Mapping[str, Any]) -> Stream:
        return Stream(name=name, classes=count, records=until, checkpoints=(until,), arriving=False, **network)

    streams = [mixed(f"classes-{count}", count, records[0], vectors) for count in classes]
    if args.resnet:
        until = min(records[0], _rounded(2 * args.classes))
        streams += [mixed(f"resnet-classes-{count}", count, until, images) for count in classes]
    checkpoints = tuple(records)
    streams.append(
        Stream(
            name="records",
            classes=classes[0],
            records=records[-1],
            checkpoints=checkpoints,
            arriving=False,
            **vectors,
        )
    )
    streams.append(
        Stream(
            name="together",
            classes=classes[-1],
            records=records[-1],
            checkpoints=checkpoints,
            arriving=True,
            **vectors,
        )
    )
    return streams


def _rounded(records: float) -> int:
    return max(1, round(records / _BLOCK)) * _BLOCK


def axes_of(streams: Sequence[Stream]) -> dict[str, list[tuple[str, int]]]:
    """{axis: its checkpoints, by stream and records, from few to many}."""
    axes: dict[str, list[tuple[str, int]]] = {}
    for stream in streams:
        head, _, last = stream.name.rpartition("-")
        axis = head if last.isdecimal() else stream.name
        axes.setdefault(axis, []).extend((stream.name, records) for records in stream.checkpoints)
    return axes


def ratios_of(
    axes: Mapping[str, Sequence[tuple[str, int]]],
    checkpoints: Mapping[tuple[str, int], Checkpoint],
    paces: Mapping[tuple[str, int], Pace],
) -> dict[str, dict[str, Any]]:
    """The last checkpoint of each axis to its first."""
    ratios: dict[str, dict[str, Any]] = {}
    for axis, along in axes.items():
        first, last = along[0], along[-1]
        of_turns = [b / a for a, b in zip(paces[first].turn_medians, paces[last].turn_medians, strict=True)]
        early, late = paces[first].evaluation_median, paces[last].evaluation_median
        ratios[axis] = {
            "update": paces[last].update_median / paces[first].update_median,
            "update_least": min(of_turns),
            "update_most": max(of_turns),
            "update_processor": paces[last].update_processor_median / paces[first].update_processor_median,
            "memory": checkpoints[last].memory.all / checkpoints[first].memory.all,
            "memory_anonymous": checkpoints[last].memory.anonymous / checkpoints[first].memory.anonymous,
            "snapshot": checkpoints[last].snapshot_megabytes / checkpoints[first].snapshot_megabytes,
            "evaluation": late / early if early and late else None,
        }
    return ratios


def _here(work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    return work(*arguments, **options)


def _alone(work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """In a process of its own: memory is that of this work, and of nothing before it."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments, **options).result()


def print_tables(result: Mapping[str, Any]) -> None:
    """Checkpoints, then reservoirs."""
    paces = {(pace["stream"], pace["records"]): pace for pace in result["paces"]}
    print(
        f"{'':20}{'classes':>8}{'records':>11}{'update ms':>11}{'p90':>8}{'evaluation ms':>15}{'held out':>10}"
        f"{'RSS MB':>9}{'anonymous':>11}{'snapshot MB':>13}{'records/s':>11}"
    )
    for point in result["checkpoints"]:
        pace = paces[point["stream"], point["records"]]
        evaluation = pace["evaluation_median"]
        print(
            f"{point['stream']:20}{point['classes']:8,}{point['records']:11,}{pace['update_median']:11.2f}"
            f"{pace['update_p90']:8.2f}{'-' if evaluation is None else format(evaluation, '.1f'):>15}"
            f"{point['held_out_samples']:10,}{point['memory']['all']:9.0f}"
            f"{point['memory']['anonymous']:11.0f}{point['snapshot_megabytes']:13.2f}"
            f"{point['records_per_second']:11,.0f}"
        )
    for axis, ratio in result["ratios"].items():
        print(
            f"{axis}: update x {ratio['update']:.2f} ({ratio['update_least']:.2f} to {ratio['update_most']:.2f}), "
            f"on the processor x {ratio['update_processor']:.2f}, memory x {ratio['memory']:.2f} "
            f"(anonymous x {ratio['memory_anonymous']:.2f}), snapshot x {ratio['snapshot']:.2f}"
        )
    print(
        f"\n{'reservoir':>10}{'snapshot MB':>13}{'written':>9}{'update ms':>11}{'copy':>7}{'write':>8}{'stall':>8}"
        f"{'most':>7}{'load':>8}{'rebuild':>9}{'recovery':>10}"
    )
    for cost in result["reservoirs"]:
        print(
            f"{cost['capacity']:10,}{cost['snapshot_megabytes']:13.2f}{cost['written_megabytes']:9.2f}"
            f"{cost['update']:11.2f}{cost['copy']:7.2f}{cost['write']:8.1f}{cost['stall']:8.1f}"
            f"{cost['stall_most']:7.1f}{cost['load']:8.1f}{cost['rebuild']:9.1f}{cost['recovery']:10.1f}"
        )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-classes", type=int, default=10)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--first-records", type=int, default=10_000)
    parser.add_argument("--records", type=int, default=1_000_000, help=f"like the first ones in whole {_BLOCK}s")
    parser.add_argument("--inputs", type=int, default=64, help="numbers in a vector")
    parser.add_argument(
        "--evaluation-every",
        type=int,
        help="records between two evaluations; default: the settings' (with a thousand classes most of the time)",
    )
    parser.add_argument("--resnet", action="store_true", help="the axis of classes also on ResNet-18, width 32")
    parser.add_argument("--turns", type=int, default=20, help="of each checkpoint, side by side")
    parser.add_argument("--updates", type=int, default=25, help="in a turn")
    parser.add_argument("--capacities", type=int, nargs="*", default=[200, 2_000, 20_000], help="of reservoirs")
    parser.add_argument("--snapshots", type=int, default=20, help="of each reservoir")
    parser.add_argument("--snapshot-every", type=int, default=1_000, help="records between two of them")
    parser.add_argument("--repeats", type=int, default=5, help="recoveries of each reservoir")
    parser.add_argument("--quick", action="store_true", help="small sizes, all in one process: seconds, for a test")
    parser.add_argument("--folder", type=Path, help="where snapshots are written; default: the temporary folder")
    parser.add_argument("--json", type=Path)
    quick = parser.parse_known_args(arguments)[0].quick
    if quick:
        parser.set_defaults(
            first_classes=4,
            classes=20,
            first_records=1_000,
            records=2_000,
            turns=2,
            updates=10,
            capacities=[50, 200],
            snapshots=3,
            snapshot_every=200,
            repeats=2,
        )
    args = parser.parse_args(arguments)
    if args.first_classes > args.classes or args.first_records > args.records:
        parser.error("there are at least as many classes and records at the end as at first")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """1. Each stream alone, 2. all checkpoints side by side, 3. reservoirs; 4. tables. JSON is written after each."""
    args = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the temporary folder must go
    result = circumstances("benchmarks.growth", arguments)
    streams = streams_of(args)
    result |= {"settings": streams[-1].settings.model_dump(mode="json"), "inputs": args.inputs}
    place = _here if args.quick else _alone

    def write() -> None:  # after an hour of streams a failing reservoir must not cost them
        if args.json is not None:
            write_result(args.json, result)

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        # 1.
        points: dict[tuple[str, int], Checkpoint] = {}
        trails: dict[str, Any] = {}
        for stream in streams:
            followed = place(follow, stream, folder / stream.name)
            points |= {(point.stream, point.records): point for point in followed.checkpoints}
            trails[stream.name] = [{"records": records, **asdict(memory)} for records, memory in followed.memory_trail]
            result |= {"checkpoints": [asdict(point) for point in points.values()], "memory_trails": trails}
            write()
        # 2.
        paces = place(side_by_side, streams, folder, turns=args.turns, updates=args.updates)
        of_pace = {(pace.stream, pace.records): pace for pace in paces}
        result |= {
            "paces": [asdict(pace) for pace in paces],
            "ratios": ratios_of(axes_of(streams), points, of_pace),
            "reservoirs": [],
        }
        write()
        # 3.
        for capacity in args.capacities:
            cost = place(
                measure_reservoir,
                capacity,
                folder / f"reservoir-{capacity}",
                snapshots=args.snapshots,
                every=args.snapshot_every,
                repeats=args.repeats,
            )
            result["reservoirs"].append(asdict(cost))
            write()
    # 4.
    print_tables(result)


if __name__ == "__main__":
    configure_logs()
    main()
