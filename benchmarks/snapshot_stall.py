"""How long learning stands still for a snapshot: the turns of the loop, with snapshots and without, side by side.

    python -m benchmarks.snapshot_stall --dataset mnist --data-root DIR --records 12000 --every 500 --json FILE

The stream lies on a real broker (the embedded one); the same records are learnt on branches of their own, in turns,
once without a snapshot and once with one every so many records. A turn of the loop is one update and what follows it,
the copying of the state included; waiting for records is not. Of each snapshot the longest turn counts, from the
copying until its commit is through. Less the copying, and less the update that the turn holds anyway, it is the
snapshot's stall. Evaluations and drift detection are off: they have turns of their own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from consumers.kafka_settings import KafkaSettings
from consumers.learner_process import LearnerProcess
from consumers.observers import Observer
from consumers.process_settings import MetricsSettings, RegistrySettings, SnapshotSettings
from consumers.snapshot_commit import CommitReport
from deploy.embedded_kafka import EmbeddedKafka
from deploy.learning import open_learner
from deploy.logs import configure_logs
from deploy.settings import Settings
from pipeline.micro_batch import MicroBatch
from pipeline.settings import LearnerSettings
from pipeline.state import StateTree
from pipeline.stream_learner import StepReport
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_producer import produce
from producers.sample_stream import SampleStream
from producers.schedules.blurred import Blurred

_WARM_UP_UPDATES = 50
_NEVER = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """One turn's figures; times in milliseconds."""

    snapshots: int
    snapshot_megabytes: float
    update_p50: float  # without snapshots
    turn_p99: float  # without snapshots: what this machine does by itself
    copy_p50: float
    write_p50: float  # beside the learning: until it is durable
    commit_p50: float  # beside the learning: the transaction
    stall_p50: float  # beyond the copy and one update
    stall_p99: float
    samples_per_second: float
    samples_per_second_without: float


class TurnWatch(Observer):
    """How long each turn of the loop took, and between which of them each commit was under way."""

    def __init__(self) -> None:
        self.turns: list[float] = []  # milliseconds
        self.commits: list[tuple[int, int, CommitReport]] = []  # turns before its copy, turns until it was through
        self._begun: list[int] = []
        self._step_began: float | None = None

    def watch(self, process: LearnerProcess) -> None:
        """A turn is from the beginning of a step to the end of what the batch boundary brings."""
        learner, checkpoints = process.learner, process._checkpoints
        state, step, boundary = learner.state, learner.step, checkpoints.commit_if_due

        def copying() -> StateTree:
            self._begun.append(len(self.turns))
            return state()

        def stepping(batch: MicroBatch) -> StepReport:
            self._step_began = time.perf_counter()
            return step(batch)

        def at_the_boundary() -> None:
            boundary()
            if self._step_began is not None:
                self.turns.append(1000 * (time.perf_counter() - self._step_began))
                self._step_began = None

        learner.state, learner.step = copying, stepping  # type: ignore[method-assign]
        checkpoints.commit_if_due = at_the_boundary  # type: ignore[method-assign]

    def committed(self, report: CommitReport) -> None:
        self.commits.append((self._begun.pop(0), len(self.turns), report))


def run(args: argparse.Namespace, kafka: KafkaSettings, stream: str, every: int | None) -> tuple[TurnWatch, float]:
    """One pass over the stream on a branch of its own; also the samples a second."""
    settings = Settings(
        learner=LearnerSettings.model_validate(
            {
                "threads": 1,
                "network": {"backbone": args.backbone, "options": json.loads(args.options)},
                "replay": {"capacity": args.buffer},
                "evaluation": {"every_records": _NEVER, "burst_records": _NEVER},
                "drift": {"detector": None},
            }
        ),
        kafka=kafka,
        snapshots=SnapshotSettings(every_seconds=_NEVER, every_records=every),
        registry=RegistrySettings(enabled=False),
        metrics=MetricsSettings(enabled=False),
    )
    watch = TurnWatch()
    with (
        tempfile.TemporaryDirectory(dir=args.folder) as folder,
        open_learner(
            stream=stream,
            state=Path(folder),
            settings=settings,
            branch=f"stall-{uuid.uuid4().hex[:8]}",
            observers=[watch],
        ) as opened,
    ):
        watch.watch(opened.process)
        report = opened.process.run(stop=threading.Event(), until_idle_seconds=0.5)
    return watch, report.records / report.busy_seconds


def measure(args: argparse.Namespace, kafka: KafkaSettings, stream: str) -> Stall:
    """One turn: without, then with."""
    calm, calm_rate = run(args, kafka, stream, None)
    busy, busy_rate = run(args, kafka, stream, args.every)
    calm_turns, turns = np.array(calm.turns[_WARM_UP_UPDATES:]), np.array(busy.turns)
    update = float(np.median(calm_turns))
    stalls, reports = [], []
    for begun, through, report in busy.commits:
        if begun <= _WARM_UP_UPDATES or through >= len(turns):
            continue  # the last one is waited for
        during = turns[begun : through + 1].copy()
        during[0] -= 1000 * report.copy_seconds  # the copy is made in the turn that was under way
        stalls.append(float(during.max()) - update)
        reports.append(report)
    assert stalls, "no snapshot was made while records came; give more --records or a smaller --every"
    return Stall(
        snapshots=len(stalls),
        snapshot_megabytes=float(np.median([report.entry.bytes for report in reports])) / 1e6,
        update_p50=update,
        turn_p99=float(np.percentile(calm_turns, 99)),
        copy_p50=1000 * float(np.median([report.copy_seconds for report in reports])),
        write_p50=1000 * float(np.median([report.write_seconds for report in reports])),
        commit_p50=1000 * float(np.median([report.commit_seconds for report in reports])),
        stall_p50=float(np.percentile(stalls, 50)),
        stall_p99=float(np.percentile(stalls, 99)),
        samples_per_second=busy_rate,
        samples_per_second_without=calm_rate,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--records", type=int, default=12_000)
    parser.add_argument("--every", type=int, default=500, help="records between two snapshots")
    parser.add_argument("--buffer", type=int, default=500)
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--options", default="{}", help="of the backbone, as JSON")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the snapshots are written; default: the temporary folder")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    configure_logs()
    stream = f"stall-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka(Path(folder)) as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        dataset = open_dataset(args.dataset, DatasetOptions(data_root=args.data_root))
        produce(SampleStream(dataset, Blurred(), records=args.records), stream_name=stream, kafka=kafka)
        turns = []
        for turn in range(args.repeat):
            turns.append(measure(args, kafka, stream))
            print(f"turn {turn + 1}: " + "  ".join(f"{name} {value:.4g}" for name, value in asdict(turns[-1]).items()))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(turn) for turn in turns], indent=1))


if __name__ == "__main__":
    main()
