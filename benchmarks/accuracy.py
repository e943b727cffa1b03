"""Accuracy over benchmark streams, method by method: the papers' tables, through the whole of Palimpsest.

    python -m benchmarks.accuracy --stream split-mnist --methods der_pp palimpsest --buffers 100 200 500 \
        --seeds 0 1 2 3 4 --via kafka --data-root DIR --json FILE

Nobody tells the learner where a step ends. Accuracy is over the data set's whole test part and all classes; forgetting
of a step is its best accuracy so far minus the last, averaged over all steps but the last (Chaudhry et al. 2018,
equation 3). Streams are the files of benchmarks/streams/, methods those of benchmarks/methods.py.

`--via kafka` sends the records through a real broker (the embedded one, or --bootstrap-servers), with snapshots and
commits as in production; `--via memory` runs the same process on the in-memory twins, to the very same weights.
`--jobs 6` runs as many seeds beside each other, each in a process of its own: a GPU, or many cores, are used so.
`--set '{"optimizer": {"learning_rate": 0.05}}'` changes settings of the learner for all methods.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.command_line import command_of, run, write_result
from benchmarks.machine import machine
from benchmarks.methods import METHODS, learner_settings
from benchmarks.one_pass import Run, kafka_for, run_once
from benchmarks.streams import benchmark_streams
from consumers.kafka_settings import KafkaSettings
from pipeline.settings import LearnerSettings


def settings_for(args: argparse.Namespace, method: str, buffer: int, seed: int) -> LearnerSettings:
    """Of one run; raises `ValidationError`."""
    stream = benchmark_streams()[args.stream]
    changes = {"device": args.device, "threads": args.threads, **args.set}
    return learner_settings(stream, method, changes, seed=seed, buffer=buffer, epochs=args.epochs)


def measure_seed(args: argparse.Namespace, method: str, buffer: int, seed: int, kafka: KafkaSettings | None) -> Run:
    """One run, and a line of it."""
    stream = benchmark_streams()[args.stream]
    opened = stream.open(args.data_root, seed, records=args.records, shuffled=METHODS[method].shuffled)
    measured, _ = run_once(opened, settings_for(args, method, buffer, seed), kafka, epochs=args.epochs)
    forgotten = "" if measured.average_forgetting is None else f", average forgetting {measured.average_forgetting:.2%}"
    print(
        f"{args.stream} {method} buffer {buffer} seed {seed}: accuracy {measured.accuracy:.2%}{forgotten}, "
        f"{measured.samples_per_second:,.0f} samples/s",
        file=sys.stderr,
        flush=True,
    )
    return measured


def row_of(args: argparse.Namespace, method: str, buffer: int, runs: Sequence[Run]) -> dict[str, Any]:
    """One row of the table: all seeds."""
    accuracies = [run.accuracy for run in runs]
    return {
        "method": method,
        "source": METHODS[method].source,
        "buffer": buffer,
        "runs": [asdict(run) for run in runs],
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
        "learner": settings_for(args, method, buffer, args.seeds[0]).model_dump(mode="json"),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with its settings checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=sorted(benchmark_streams()), default="split-mnist")
    parser.add_argument("--methods", choices=sorted(METHODS), nargs="+", default=["der_pp", "palimpsest"])
    parser.add_argument("--buffers", type=int, nargs="+", default=[200])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--records", type=int, help="a shorter or longer stream; default: the data set once")
    parser.add_argument("--epochs", type=int, default=1, help="read each step of the log so often (default: 1)")
    parser.add_argument("--via", choices=["kafka", "memory"], default="memory")
    parser.add_argument("--set", type=json.loads, default={}, help="settings of the learner, as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="more lose on a network as small as MNIST's")
    parser.add_argument("--jobs", type=int, default=1, help="runs beside each other (default: 1)")
    parser.add_argument("--bootstrap-servers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    args.command = command_of("benchmarks.accuracy", arguments)
    if args.jobs < 1:
        parser.error(f"--jobs is 1 or more; got {args.jobs}")
    try:
        for method in args.methods:
            for buffer in args.buffers:
                settings_for(args, method, buffer, args.seeds[0])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        parser.error(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg'].removeprefix('Value error, ')}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top. Raises `UserError` for what the user can put right."""
    args = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the broker must end with us
    rows: list[dict[str, Any]] = []
    with kafka_for(args.via, args.bootstrap_servers) as kafka, _runner(args.jobs) as run_beside:
        places = [(method, buffer) for method in args.methods for buffer in args.buffers]
        begun = {
            place: [run_beside(measure_seed, args, *place, seed, kafka) for seed in args.seeds] for place in places
        }
        for place in places:
            rows.append(row_of(args, *place, [finish() for finish in begun[place]]))
            _write(args, rows)  # after an hour of rows a failing one must not cost them
    print(f"{benchmark_streams()[args.stream].title}; via {args.via}, {len(args.seeds)} seeds")
    for row in rows:
        print(f"{row['method']}, buffer {row['buffer']}: {row['mean']:.2%} ± {row['std']:.2%}")


@contextmanager
def _runner(jobs: int) -> Iterator[Callable[..., Callable[[], Run]]]:
    """What begins a call and gives what ends it: in a process of its own, so many at once; one: here, when it is
    asked for."""
    if jobs == 1:
        yield partial
        return
    # not forked: a process with threads and a CUDA device does not survive that
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            yield lambda *call: pool.submit(*call).result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows so far, where --json says."""
    if args.json is None:
        return
    result = {
        "command": args.command,
        "stream": args.stream,
        "title": benchmark_streams()[args.stream].title,
        "via": args.via,
        "seeds": args.seeds,
        "records": args.records,
        "epochs": args.epochs,
        "set": args.set,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "rows": rows,
    }
    write_result(args.json, result)


if __name__ == "__main__":
    run(main, "accuracy")
