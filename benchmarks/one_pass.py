"""One learner over one stream, and a test part that judges it: what every accuracy of the benchmarks comes from.

The whole of Palimpsest runs: records decoded, batches cut, snapshots written, offsets committed; through a real broker,
or on the in-memory twins of the same contracts.
"""

from __future__ import annotations

import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.command_line import broker_at
from benchmarks.epoch_source import EpochSource
from benchmarks.streams.benchmark_stream import Opened, TestPart
from consumers import topics
from consumers.kafka_commit_log import KafkaCommitLog
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.learner_process import LearnerProcess
from consumers.manifest_facts import ProcessFacts
from consumers.memory_commit_log import InMemoryCommitLog, InMemoryCommits
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.observers import Observer
from consumers.process_settings import RegistrySettings, SnapshotSettings, StreamSettings
from consumers.record_source import RecordSource
from deploy.process_facts import process_facts
from model_store.snapshot_store import SnapshotStore
from pipeline.device import configure_torch
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StepReport, StreamLearner
from producers.sample_producer import produce
from producers.sample_stream import SampleStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One seed. Accuracies and forgetting are ratios."""

    seed: int
    accuracy: float  # over all test rows, after the last record
    step_accuracies: list[float]  # after each step, over the test rows of the classes of the steps so far
    average_forgetting: float | None  # over all steps but the last; None: the stream's steps share classes
    samples_per_second: float


class StepWatch(Observer):
    """Looks at the test part after the last record of each step; its own time is not the learner's."""

    def __init__(self, test: TestPart, ends: Sequence[int]) -> None:
        self._test = test
        self._ends = list(ends)
        self.rows: list[npt.NDArray[np.float64]] = []
        self.seconds = 0.0

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        """At the first batch boundary past the end of a step."""
        if len(self.rows) < len(self._ends) and report.records_consumed >= self._ends[len(self.rows)]:
            began = time.perf_counter()
            self.rows.append(self._test.accuracies(learner, len(self._ends)))
            self.seconds += time.perf_counter() - began


def run_once(
    opened: Opened, settings: LearnerSettings, kafka: KafkaSettings | None, *, epochs: int = 1
) -> tuple[Run, StreamLearner]:
    """One pass over the stream, or so many over each of its steps; also the learner, as it is at the end. `kafka` None:
    from memory."""
    stream, test = opened.stream, opened.test
    records = epochs * len(stream)
    ends = [int(np.searchsorted(stream.step_N, step, side="right")) for step in range(int(stream.step_N.max()) + 1)]
    steps = len(ends) if test.step_N is not None else 0
    watch = StepWatch(test, [epochs * end for end in ends[:steps]])
    configure_torch(settings)
    with (
        tempfile.TemporaryDirectory() as folder,
        _process(stream, settings, kafka, Path(folder), watch, ends, epochs) as process,
    ):
        process.start()
        report = process.run(stop=threading.Event(), until_idle_seconds=0.5)
        learner = process.learner
        assert learner.records_trained == records, f"{learner.records_trained} of {records} records trained"
        if steps:
            watch.rows[-1:] = [test.accuracies(learner, steps)]  # the last partial batch, learnt when the log was idle
        accuracy = test.accuracy(learner)
    forgetting = None
    R = np.stack(watch.rows) if steps else np.empty((0, 0))
    if steps:
        forgetting = float((R[:-1].max(axis=0) - R[-1])[:-1].mean()) if steps > 1 else 0.0
    run = Run(
        seed=settings.seed,
        accuracy=accuracy,
        step_accuracies=[float(np.average(R[t, : t + 1], weights=test.step_sizes[: t + 1])) for t in range(steps)],
        average_forgetting=forgetting,
        # from the first record to the last commit, without the looks at the test part and the wait that proves idleness
        samples_per_second=records / (report.busy_seconds - watch.seconds),
    )
    return run, learner


@contextmanager
def _process(
    stream: SampleStream,
    settings: LearnerSettings,
    kafka: KafkaSettings | None,
    folder: Path,
    watch: StepWatch,
    step_ends: Sequence[int],
    epochs: int,
) -> Iterator[LearnerProcess]:
    def read(source: RecordSource) -> RecordSource:
        return source if epochs == 1 else EpochSource(source, step_ends, epochs)

    name = f"benchmark-{uuid.uuid4().hex[:8]}"
    common = {
        "learner": StreamLearner(settings),
        "store": SnapshotStore(folder / "snapshots"),
        "stream_settings": StreamSettings(idle_flush_seconds=0.25),
        "snapshot_settings": SnapshotSettings(every_seconds=5.0),
        "registry_settings": RegistrySettings(enabled=False),
        "observer": watch,
    }
    if kafka is None:
        log = InMemoryLog(topics.samples(name))
        for record in stream.log(log.topic):
            log.append(record.value, key=record.key, headers=record.headers)
        source = InMemoryRecordSource(log)
        commit_log = InMemoryCommitLog(InMemoryCommits(), name, "main", source.beginning_offsets())
        facts = ProcessFacts(
            stream=name, branch="main", topic=log.topic, cluster_id="memory", topic_id=name, state_id=name
        )
        yield LearnerProcess(source=read(source), commit_log=commit_log, facts=facts, **common)  # type: ignore[arg-type]
        return
    produce(stream, stream_name=name, kafka=kafka)
    topics.ensure_report_topics(kafka, name)
    samples = topics.check_samples_topic(kafka, name)
    facts = process_facts(samples, stream=name, branch="main", state_id=name)
    with (
        KafkaRecordSource(kafka, samples.partitions) as kafka_source,
        KafkaCommitLog(kafka, name, "main", samples.partitions) as kafka_commits,
    ):
        yield LearnerProcess(source=read(kafka_source), commit_log=kafka_commits, facts=facts, **common)  # type: ignore[arg-type]


@contextmanager
def kafka_for(via: str, bootstrap_servers: str | None) -> Iterator[KafkaSettings | None]:
    """For `--via` and `--bootstrap-servers`: None for memory, else the cluster named, else the embedded broker."""
    if via == "memory":
        yield None
        return
    with broker_at(bootstrap_servers) as kafka:
        yield kafka
