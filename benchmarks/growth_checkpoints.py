"""A made stream is learnt, and at its checkpoints looked at: the memory, the state, its snapshot."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.growing_stream import BLOCK, Stream
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.device import configure_torch
from pipeline.state import StateTree
from pipeline.stream_learner import StreamLearner

_MEGABYTE = 1e6


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
    trail_every = max(BLOCK, stream.records // 50)
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
