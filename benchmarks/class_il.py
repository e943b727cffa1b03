"""Class-incremental learning in one pass: the papers' benchmark, through the whole of Palimpsest.

    python -m benchmarks.class_il --dataset mnist --data-root DIR --buffer 200 --seeds 0 1 2 \
        --via kafka --retention der_pp --json FILE

Split-MNIST, as in Buzzega et al. 2020: five steps of two classes, one pass, batches of 10, a perceptron with two hidden
layers of 100, replay draws of 128, SGD. Nobody tells the learner where a step ends. Accuracy is over the data set's
whole test part and all classes; forgetting of a step is its best accuracy so far minus the last, averaged over all
steps but the last (Chaudhry et al. 2018, eq. 3).

`--via kafka` sends the records through a real broker (the embedded one, or --bootstrap-servers), with snapshots and
commits as in production; `--via memory` runs the same process on the in-memory twins.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

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
from deploy.embedded_kafka import EmbeddedKafka
from deploy.logs import configure_logs
from model_store.snapshot_store import SnapshotStore
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.device import configure_torch
from pipeline.record import Record
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StepReport, StreamLearner
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_producer import produce
from producers.sample_stream import SampleStream
from producers.schedules.split import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One seed."""

    seed: int
    accuracy: float
    average_forgetting: float
    samples_per_second: float


class TestPart:
    """The data set's test part, decoded, and which rows judge which step."""

    __test__ = False  # not a test case, whatever pytest thinks of its name

    def __init__(self, dataset: str, data_root: Path, step_of_class: dict[str, int]) -> None:
        self.x, self.labels = _decoded(dataset, data_root)
        self.step_N = np.array([step_of_class[label] for label in self.labels])

    def accuracies(self, learner: StreamLearner, steps: int) -> npt.NDArray[np.float64]:
        """Accuracy on each step's classes, among all classes known so far."""
        columns_N = np.array([learner.class_columns.get(label, -1) for label in self.labels])
        right_N = learner.predict_columns(self.x) == columns_N
        return np.array([right_N[self.step_N == step].mean() for step in range(steps)])

    def accuracy(self, learner: StreamLearner) -> float:
        """Over all rows."""
        columns_N = np.array([learner.class_columns.get(label, -1) for label in self.labels])
        return float((learner.predict_columns(self.x) == columns_N).mean())


@cache
def _decoded(dataset: str, data_root: Path) -> tuple[npt.NDArray[np.generic], Sequence[str]]:
    """Rows and labels, once for all seeds: 10,000 images take seconds."""
    part = open_dataset(dataset, DatasetOptions(data_root=data_root, split="test"))
    decoder = RecordDecoder(LearnerSettings().input)
    x = np.stack([decoder.decode_payload(*part.payload(item))[0] for item in range(len(part))])
    return x, [part.classes[int(label)] for label in part.labels]


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


def settings_for(args: argparse.Namespace, seed: int) -> LearnerSettings:
    """The papers' protocol; nothing is held out, since the test part judges."""
    return LearnerSettings.model_validate(
        {
            "seed": seed,
            "batch_size": args.batch_size,
            "device": args.device,
            "threads": args.threads,
            "network": {"backbone": args.backbone, "initial_columns": args.columns},
            "optimizer": {"learning_rate": args.learning_rate},
            "replay": {"capacity": args.buffer, "draw_size": args.draw_size, "fused": not args.unfused},
            "retention": {name: {} for name in args.retention.split(",") if name and name != "none"},
            "hold_out": {"share": 0.0},
            "drift": {"detector": None},
        }
    )


def run_once(args: argparse.Namespace, seed: int, kafka: KafkaSettings | None) -> tuple[Run, StreamLearner]:
    """One pass over the stream of one seed; also the learner, as it is at the end."""
    options = DatasetOptions(data_root=args.data_root)
    stream = SampleStream(open_dataset(args.dataset, options), Split(), seed=seed, records=args.records)
    classes = stream.dataset.classes
    step_of_class = {
        classes[int(stream.dataset.labels[item])]: int(step)
        for item, step in zip(stream.item_N, stream.step_N, strict=True)
    }
    test = TestPart(args.dataset, args.data_root, step_of_class)
    steps = int(stream.step_N.max()) + 1
    watch = StepWatch(test, [int(np.searchsorted(stream.step_N, step, side="right")) for step in range(steps)])
    settings = settings_for(args, seed)
    configure_torch(settings)
    with tempfile.TemporaryDirectory() as folder, _process(stream, settings, kafka, Path(folder), watch) as process:
        process.start()
        report = process.run(stop=threading.Event(), until_idle_seconds=0.5)
        learner = process.learner
        assert learner.records_trained == len(stream), f"{learner.records_trained} of {len(stream)} records trained"
        watch.rows[-1:] = [test.accuracies(learner, steps)]  # the last partial batch, learnt when the log was idle
        accuracy = test.accuracy(learner)
    R = np.stack(watch.rows)
    forgetting = float((R[:-1].max(axis=0) - R[-1])[:-1].mean()) if steps > 1 else 0.0
    run = Run(
        seed=seed,
        accuracy=accuracy,
        average_forgetting=forgetting,
        # from the first record to the last commit, without the looks at the test part and the wait that proves idleness
        samples_per_second=len(stream) / (report.busy_seconds - watch.seconds),
    )
    return run, learner


@contextmanager
def _process(
    stream: SampleStream, settings: LearnerSettings, kafka: KafkaSettings | None, folder: Path, watch: StepWatch
) -> Iterator[LearnerProcess]:
    name = f"class-il-{uuid.uuid4().hex[:8]}"
    snapshots = SnapshotSettings(every_seconds=5.0)
    common = {
        "learner": StreamLearner(settings),
        "store": SnapshotStore(folder / "snapshots"),
        "stream_settings": StreamSettings(idle_flush_seconds=0.25),
        "snapshot_settings": snapshots,
        "registry_settings": RegistrySettings(enabled=False),
        "observer": watch,
    }
    if kafka is None:
        log = InMemoryLog(topics.samples(name))
        for record in stream.log(log.topic):
            _append(log, record)
        source = InMemoryRecordSource(log)
        commit_log = InMemoryCommitLog(InMemoryCommits(), name, "main", source.beginning_offsets())
        facts = ProcessFacts(
            stream=name, branch="main", topic=log.topic, cluster_id="memory", topic_id=name, state_id=name
        )
        yield LearnerProcess(source=source, commit_log=commit_log, facts=facts, **common)  # type: ignore[arg-type]
        return
    produce(stream, stream_name=name, kafka=kafka)
    topics.ensure_report_topics(kafka, name)
    samples = topics.check_samples_topic(kafka, name)
    facts = ProcessFacts(
        stream=name,
        branch="main",
        topic=samples.topic,
        cluster_id=samples.cluster_id,
        topic_id=samples.topic_id,
        state_id=name,
    )
    with (
        KafkaRecordSource(kafka, samples.partitions) as kafka_source,
        KafkaCommitLog(kafka, name, "main", samples.partitions) as kafka_commits,
    ):
        yield LearnerProcess(source=kafka_source, commit_log=kafka_commits, facts=facts, **common)  # type: ignore[arg-type]


def _append(log: InMemoryLog, record: Record) -> None:
    log.append(record.value, key=record.key, headers=record.headers)


@contextmanager
def _kafka(args: argparse.Namespace) -> Iterator[KafkaSettings | None]:
    if args.via == "memory":
        yield None
    elif args.bootstrap_servers:
        yield KafkaSettings(bootstrap_servers=args.bootstrap_servers)
    else:
        with tempfile.TemporaryDirectory() as folder, EmbeddedKafka(Path(folder)) as broker:
            yield KafkaSettings(bootstrap_servers=broker.bootstrap_servers)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; its defaults are the papers' protocol."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--records", type=int, help="a shorter or longer stream; default: the data set once")
    parser.add_argument("--buffer", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--via", choices=["kafka", "memory"], default="memory")
    parser.add_argument("--retention", default="der_pp", help="NAME[,NAME]; none: plain fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--draw-size", type=int, default=128)
    parser.add_argument("--columns", type=int, default=10, help="logit columns at the start; the papers' heads have 10")
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--unfused", action="store_true", help="a forward pass each for incoming rows and draws")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="more lose on so small a network")
    parser.add_argument("--bootstrap-servers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    try:
        settings_for(args, args.seeds[0])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        parser.error(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg'].removeprefix('Value error, ')}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top. Raises `UserError` for what the user can put right."""
    args = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the broker must end with us
    runs: list[Run] = []
    with _kafka(args) as kafka:
        for seed in args.seeds:
            run, _ = run_once(args, seed, kafka)
            runs.append(run)
            print(
                f"seed {seed}: accuracy {run.accuracy:.2%}, average forgetting {run.average_forgetting:.2%}, "
                f"{run.samples_per_second:,.0f} samples/s",
                file=sys.stderr,
            )
    accuracies = [run.accuracy for run in runs]
    result = {
        "runs": [asdict(run) for run in runs],
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()
            if name != "json"
        }
        | {"learner": settings_for(args, args.seeds[0]).model_dump(mode="json")},
    }
    print(f"{args.retention}, buffer {args.buffer}, via {args.via}: {result['mean']:.2%} ± {result['std']:.2%}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    configure_logs()
    try:
        main()
    except UserError as error:
        print(f"{Path(__file__).stem}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
