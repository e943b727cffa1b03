"""Samples a second for the same work: a plain loop, this learner from memory and through Kafka, and other libraries.

    python -m benchmarks.throughput --data-root DIR --json FILE [--mammoth DIR --mammoth-python PYTHON]

The work is DER++ on Split-MNIST, class-incremental, one pass: batches of 10, two draws of 128 in an update, a buffer of
200, a perceptron with two hidden layers of 100 and ten columns, float32, the papers' rates. By

- plain: `plain_der_pp`, what one would write who needs nothing else. Timed: the loop over rows that are decoded, scaled
  and in memory.
- memory: the learner's process on the in-memory twins, without evaluation, hold-out or drift detection and without a
  snapshot before its end. Timed: from the first record taken to the last one learnt, with all that happens to a record
  meanwhile: a thread beside the learning decodes it (a PNG) up to 2,000 records ahead, repeats are told by their ids,
  the update is looked at for what is not finite, prequential accuracy is kept.
- kafka: the same through a real broker (the embedded one, or --bootstrap-servers) as `palimpsest learn` does it on a
  branch of its own, with metrics counted, snapshots every 5 s and commits. Timed: as memory. On a stream of less than
  5 s it makes none before its end.
- avalanche, mammoth: DER++ of these libraries; `peers` says what is timed. Mammoth wants a checkout, and an interpreter
  with its dependencies, and only knows --dataset mnist.

All take turns (--repeat), so that what else the machine does falls on each of them alike, on the same device and with
as many threads of arithmetic; the time before the first turn warms up what is in this process. `spread` is the largest
figure of the turns less the smallest. A peer that cannot be measured is named with the reason, and the others go on.
`ratios` are quotients of the means: "memory/plain" 0.5 is half as many samples a second from memory as in the plain
loop.

Legend: M = rows of the stream, F = values of a row
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.command_line import broker_at, command_of, run, write_result
from benchmarks.machine import machine
from benchmarks.peers import PeerFailed, avalanche_rate, mammoth_rate
from benchmarks.plain_der_pp import DerPlusPlusSettings, PlainDerPlusPlus
from consumers import topics
from consumers.kafka_settings import KafkaSettings
from consumers.learner_process import LearnerProcess, RunReport
from consumers.manifest_facts import ProcessFacts
from consumers.memory_commit_log import InMemoryCommitLog, InMemoryCommits
from consumers.memory_record_source import InMemoryLog, InMemoryRecordSource
from consumers.observers import Observer
from consumers.process_settings import MetricsSettings, RegistrySettings, SnapshotSettings, StreamSettings
from deploy.exit_codes import one_line
from deploy.learning import open_learner
from deploy.settings import Settings
from deploy.settled_objects import settled
from model_store.snapshot_store import SnapshotStore
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.device import choose_device, configure_torch
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StreamLearner
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_producer import produce
from producers.sample_stream import SampleStream
from producers.schedules.split import Split

OURS = ("plain", "memory", "kafka")
PEERS = ("avalanche", "mammoth")
RATIOS = (
    *((ours, other) for ours in ("memory", "kafka") for other in ("plain", *PEERS)),
    ("kafka", "memory"),
)
_SNAPSHOT_SECONDS = 5.0
_WARM_UP_RECORDS = 1_000
_IDLE_SECONDS = 0.5
_NEVER = 10**9


class Work:
    """The stream, in each of the forms in which somebody learns it, and what they learn it with."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.settings = DerPlusPlusSettings()
        self.seed: int = args.seed
        self.threads: int = args.threads
        self.device = choose_device(args.device)
        dataset = open_dataset(args.dataset, DatasetOptions(data_root=args.data_root))
        # whole batches: a last partial one would wait until the log is idle, and that is no work
        records = (args.records or len(dataset)) // self.settings.batch_size * self.settings.batch_size
        if not records:
            raise UserError(f"--records {args.records} is less than one batch of {self.settings.batch_size}")
        self.stream = SampleStream(dataset, Split(), seed=self.seed, records=records)
        self.log = InMemoryLog(topics.samples("throughput"))
        for record in self.stream.log(self.log.topic):
            self.log.append(record.value, key=record.key, headers=record.headers)
        self.x_MF, self.y_M = self._decoded()

    def __len__(self) -> int:
        return len(self.stream)

    def _decoded(self) -> tuple[Tensor, Tensor]:
        """float32 (M, F), images scaled to 0..1 as the learner's network does it; int64 (M,)."""
        decode = RecordDecoder(LearnerSettings().input).decode
        samples = [decode(record).sample for record in self.stream.log(self.log.topic)]
        x = torch.from_numpy(np.stack([sample.x for sample in samples if sample is not None])).flatten(1)
        assert len(x) == len(self.stream), f"{len(x)} of {len(self.stream)} records were decoded"
        y_M = torch.from_numpy(self.stream.dataset.labels[self.stream.item_N])
        return (x.float() / 255 if x.dtype == torch.uint8 else x.float()), y_M

    def learner_settings(self) -> LearnerSettings:
        """The same work as the learner is told it, down to what its defaults do otherwise today or some day."""
        ours = self.settings
        return LearnerSettings.model_validate(
            {
                "seed": self.seed,
                "batch_size": ours.batch_size,
                "device": str(self.device),
                "threads": self.threads,
                "network": {
                    "backbone": "mlp",
                    "options": {"hidden": [ours.hidden, ours.hidden]},
                    "initial_columns": ours.classes,
                },
                "optimizer": {
                    "learning_rate": ours.learning_rate,
                    "momentum": 0.0,
                    "weight_decay": 0.0,
                    "max_gradient_norm": None,
                },
                "incoming_loss": "cross_entropy",
                "averaging": {"rate": None},
                "replay": {"capacity": ours.buffer_size, "draw_size": ours.draw_size, "sampling": "uniform"},
                "retention": {"der_pp": {"alpha": ours.alpha, "beta": ours.beta}},
                "augmentation": {"crop_padding": 0, "horizontal_flip": False},
                "hold_out": {"share": 0.0},
                "evaluation": {"every_records": _NEVER, "burst_records": _NEVER},
                "drift": {"detector": None},
            }
        )

    def torch_as_usual(self) -> None:
        """For those that do not ask for deterministic kernels, which may be slower."""
        configure_torch(LearnerSettings(threads=self.threads, deterministic=False))


# -- who does the work; each gives samples a second --------------------------------------------------------------------


def plain_rate(work: Work, records: int | None = None) -> float:
    """The paper's algorithm as a plain loop."""
    work.torch_as_usual()
    learner = PlainDerPlusPlus(work.x_MF.shape[1], work.settings, seed=work.seed, device=work.device)
    x_MF, y_M = work.x_MF[:records], work.y_M[:records]
    began = time.perf_counter()
    learner.train(x_MF, y_M)
    if work.device.type == "cuda":
        torch.cuda.synchronize(work.device)
    return len(x_MF) / (time.perf_counter() - began)


def memory_rate(work: Work, records: int | None = None) -> float:
    """The learner's process on the in-memory twins."""
    settings = work.learner_settings()
    configure_torch(settings)
    source = InMemoryRecordSource(work.log)
    name = f"throughput-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        process = LearnerProcess(
            learner=StreamLearner(settings),
            source=source,
            commit_log=InMemoryCommitLog(InMemoryCommits(), name, "main", source.beginning_offsets()),
            store=SnapshotStore(Path(folder) / "snapshots"),
            facts=ProcessFacts(
                stream=name, branch="main", topic=work.log.topic, cluster_id="memory", topic_id=name, state_id=name
            ),
            stream_settings=StreamSettings(),
            snapshot_settings=SnapshotSettings(every_seconds=_NEVER),
            registry_settings=RegistrySettings(enabled=False),
            observer=Observer(),
        )
        process.start()
        return _rate(process, records or len(work))


def kafka_rate(work: Work, kafka: KafkaSettings, stream: str) -> float:
    """The learner's process on a broker, on a branch of its own."""
    settings = Settings(
        learner=work.learner_settings(),
        kafka=kafka,
        snapshots=SnapshotSettings(every_seconds=_SNAPSHOT_SECONDS),
        registry=RegistrySettings(enabled=False),
        metrics=MetricsSettings(enabled=False),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        open_learner(
            stream=stream, state=Path(folder), settings=settings, branch=f"throughput-{uuid.uuid4().hex[:8]}"
        ) as opened,
    ):
        return _rate(opened.process, len(work))


def _rate(process: LearnerProcess, records: int) -> float:
    report: RunReport = process.run(stop=threading.Event(), until_idle_seconds=_IDLE_SECONDS, max_records=records)
    trained = process.learner.records_trained
    assert trained == report.records == records, f"{trained} of {records} records were trained on"
    return records / report.busy_seconds


# -- the turns ---------------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All turns; the document that --json writes."""
    work = Work(args)
    rates: dict[str, list[float]] = {}
    not_measured: dict[str, str] = {}
    load = os.getloadavg()  # high is noise
    with ExitStack() as stack:
        contestants = _contestants(args, work, stack)
        if "plain" in contestants:
            plain_rate(work, min(_WARM_UP_RECORDS, len(work)))
        if "memory" in contestants:
            memory_rate(work, min(_WARM_UP_RECORDS, len(work)))
        # The log in memory is some million objects, which the collector would go through in everybody's time, also of
        # those who do not use it; a learner's process holds no such thing.
        stack.enter_context(settled())
        for turn in range(args.repeat):
            for name, rate in contestants.items():
                if name in not_measured:
                    continue
                try:
                    rates.setdefault(name, []).append(rate())
                except Exception as error:
                    if name not in PEERS:
                        raise
                    why = (
                        one_line(error)
                        if isinstance(error, PeerFailed)
                        else f"{type(error).__name__}: {one_line(error)}"
                    )
                    not_measured[name] = why
                    rates.pop(name, None)
                    print(f"{name} is not measured: {why}", file=sys.stderr)
                else:
                    print(f"turn {turn + 1}: {name:<10}{rates[name][-1]:>9,.0f} samples/s", file=sys.stderr)
    figures = {
        name: {
            "samples_per_second": of_turns,
            "mean": statistics.fmean(of_turns),
            "spread": max(of_turns) - min(of_turns),
        }
        for name, of_turns in rates.items()
    }
    return {
        **figures,
        "ratios": {
            f"{one}/{other}": statistics.fmean(rates[one]) / statistics.fmean(rates[other])
            for one, other in RATIOS
            if one in rates and other in rates
        },
        "not_measured": not_measured,
        "machine": machine(),
        "load_average": list(load),
        "settings": {
            "dataset": args.dataset,
            "records": len(work),
            "repeat": args.repeat,
            "threads": args.threads,
            "seed": args.seed,
            "device": str(work.device),
            "snapshot_seconds": _SNAPSHOT_SECONDS,
            **asdict(work.settings),
            "learner": work.learner_settings().model_dump(mode="json"),
        },
        "command": args.command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _contestants(args: argparse.Namespace, work: Work, stack: ExitStack) -> dict[str, Callable[[], float]]:
    """In the order of their turns. What has to be closed goes onto the stack; the stream lies on the broker then."""
    contestants: dict[str, Callable[[], float]] = {
        "plain": lambda: plain_rate(work),
        "memory": lambda: memory_rate(work),
    }
    if "kafka" not in args.skip:
        kafka = stack.enter_context(broker_at(args.bootstrap_servers))
        stream = f"throughput-{uuid.uuid4().hex[:8]}"
        produce(work.stream, stream_name=stream, kafka=kafka)
        contestants["kafka"] = lambda: kafka_rate(work, kafka, stream)

    def avalanche() -> float:
        work.torch_as_usual()
        return avalanche_rate(work.x_MF, work.y_M, work.settings, seed=work.seed, device=work.device)

    contestants["avalanche"] = avalanche
    if args.mammoth is not None:

        def mammoth() -> float:
            if args.dataset != "mnist":
                raise PeerFailed("it has this work for --dataset mnist only")
            return mammoth_rate(
                args.mammoth,
                args.mammoth_python,
                args.data_root,
                work.settings,
                seed=work.seed,
                records=len(work),
                device=work.device,
                threads=work.threads,
            )

        contestants["mammoth"] = mammoth
    return {name: rate for name, rate in contestants.items() if name not in args.skip}


def table(result: dict[str, Any]) -> str:
    """A line for each that was measured, and the ratios."""
    measured = [name for name in (*OURS, *PEERS) if name in result]
    lines = [f"{'':<12}{'samples/s':>10}{'spread':>10}"]
    lines += [f"{name:<12}{result[name]['mean']:>10,.0f}{result[name]['spread']:>10,.0f}" for name in measured]
    lines += [f"{name}: {ratio:.2f}" for name, ratio in result["ratios"].items()]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["mnist", "digits"], default="mnist")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--records", type=int, help="a shorter or longer stream; default: the data set once")
    parser.add_argument("--repeat", type=int, default=3, help="turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of the arithmetic; more lose on so small a network")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--skip", nargs="+", choices=[*OURS, *PEERS], default=[], metavar="NAME")
    parser.add_argument("--mammoth", type=Path, metavar="DIR", help="a checkout of github.com/aimagelab/mammoth")
    parser.add_argument(
        "--mammoth-python", type=Path, default=Path(sys.executable), help="with its dependencies; default: this one"
    )
    parser.add_argument("--bootstrap-servers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    args.command = command_of("benchmarks.throughput", arguments)
    for name in ("repeat", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is 1 or more; got {getattr(args, name)}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top. Raises `UserError` for what the user can put right."""
    args = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the broker must end with us
    result = measure(args)
    print(table(result))
    if args.json is not None:
        write_result(args.json, result)


if __name__ == "__main__":
    run(main, "throughput")
