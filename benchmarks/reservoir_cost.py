"""What a reservoir of a capacity costs: its snapshots, how long learning stands still for them, and recovery."""

from __future__ import annotations

import math
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.snapshot_stall import TurnWatch
from consumers import topics
from consumers.learner_process import LearnerProcess
from consumers.manifest_facts import ProcessFacts
from consumers.memory_commit_log import InMemoryCommitLog, InMemoryCommits
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.process_settings import RegistrySettings, SnapshotSettings, StreamSettings
from model_store.snapshot_store import SnapshotStore
from pipeline import keyed_randomness
from pipeline.codec.cloud_event import CloudEvent
from pipeline.codec.image import encode_png
from pipeline.device import configure_torch
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StreamLearner

_NEVER = 10**9
_IMAGE_SIDE = 28
_MEGABYTE = 1e6


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
