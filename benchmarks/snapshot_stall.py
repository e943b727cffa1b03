"""How long learning stands still for a snapshot: the gaps between updates, with snapshots and without, side by side.

    python -m benchmarks.snapshot_stall --dataset mnist --data-root DIR --records 12000 --every 500 --json FILE

The stream lies on a real broker (the embedded one); the same records are learnt on branches of their own, in turns,
once without a snapshot and once with one every so many records. A gap is the time from the end of one update to the end
of the next. Of each snapshot the longest gap counts, from the copying of the state until its commit is through. Less
the copying, and less the update that the gap holds anyway, it is the snapshot's stall. Evaluations and drift detection
are off: they have gaps of their own.
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
import numpy.typing as npt

from consumers.kafka_settings import KafkaSettings
from consumers.observers import Observer
from consumers.process_settings import MetricsSettings, RegistrySettings, SnapshotSettings
from consumers.snapshot_commit import CommitReport
from deploy.embedded_kafka import EmbeddedKafka
from deploy.learning import open_learner
from deploy.logs import configure_logs
from deploy.settings import Settings
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StepReport, StreamLearner
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
    gap_p99: float  # without snapshots: what this machine does by itself
    copy_p50: float
    write_p50: float  # beside the learning: until it is durable
    commit_p50: float  # beside the learning: the transaction
    stall_p50: float  # beyond the copy and one update
    stall_p99: float
    samples_per_second: float
    samples_per_second_without: float


class GapWatch(Observer):
    """When each update ended, and between which of them each commit was under way."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.commits: list[tuple[int, int, CommitReport]] = []  # updates before its copy, updates until it was through
        self._begun: list[int] = []

    def watch(self, learner: StreamLearner) -> None:
        """Note when the state is copied."""
        original = learner.state

        def state() -> object:
            self._begun.append(len(self.ends))
            return original()

        learner.state = state  # type: ignore[method-assign,assignment]

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        self.ends.append(time.perf_counter())

    def committed(self, report: CommitReport) -> None:
        self.commits.append((self._begun.pop(0), len(self.ends), report))

    @property
    def gaps(self) -> npt.NDArray[np.float64]:
        """Milliseconds; gap i ends with update i + 1."""
        return 1000 * np.diff(np.array(self.ends))


def run(args: argparse.Namespace, kafka: KafkaSettings, stream: str, every: int | None) -> tuple[GapWatch, float]:
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
    watch = GapWatch()
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
        watch.watch(opened.process.learner)
        report = opened.process.run(stop=threading.Event(), until_idle_seconds=0.5)
    return watch, report.records / report.busy_seconds


def measure(args: argparse.Namespace, kafka: KafkaSettings, stream: str) -> Stall:
    """One turn: without, then with."""
    calm, calm_rate = run(args, kafka, stream, None)
    busy, busy_rate = run(args, kafka, stream, args.every)
    calm_gaps, gaps = calm.gaps[_WARM_UP_UPDATES:], busy.gaps
    update = float(np.median(calm_gaps))
    stalls, reports = [], []
    for begun, through, report in busy.commits:
        # The copy comes after update `begun`, so it lies in the gap that ends with the next one.
        during = gaps[begun - 1 : through]
        if begun <= _WARM_UP_UPDATES or through >= len(busy.ends):
            continue  # the last one is waited for
        during = during - np.concatenate([[1000 * report.copy_seconds], np.zeros(len(during) - 1)])
        stalls.append(float(during.max()) - update)
        reports.append(report)
    assert stalls, "no snapshot was made while records came; give more --records or a smaller --every"
    return Stall(
        snapshots=len(stalls),
        snapshot_megabytes=float(np.median([report.entry.bytes for report in reports])) / 1e6,
        update_p50=update,
        gap_p99=float(np.percentile(calm_gaps, 99)),
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
