"""What a predictor does: requests a second, how long each waits, and what a swap costs.

    python -m benchmarks.serving --kinds mlp resnet18 --turns 3 --json FILE

A real broker (the embedded one), a real MLflow, `palimpsest predict` as a process of its own; committed answers count
from when they come to this process. In each turn, one after the other:

    loop      the plain network: the same payloads, decoded and predicted in batches of 256, in this process alone
    served    the same payloads, sent before the predictor is let at them; from the first answer to the last
    latency   requests at a third of that pace, from the moment they are sent
    swaps     at that pace the alias goes back and forth: from the alias to the first answer by the other version, and
              the longest gap between two answers around it, less the longest gap in as long a time without a swap;
              half of the swaps are promotions, which are told as an event, half the alias alone, found by looking
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command_line import run, write_result
from benchmarks.machine import circumstances
from benchmarks.served_stream import KINDS, STREAM, Kind, Reader, Served, ask, classifier, payloads, served
from deploy.promoting import EventTeller
from model_store.promotion_steps import Promoter

_LOOP_ROWS = 256
_START_SECONDS = 120.0
_AROUND_SECONDS = 1.0  # of a swap's first answer: where its gap is looked for
_SETTLED_SECONDS = 4.0  # between two swaps


@contextmanager
def predictor(served: Served, args: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    """`palimpsest predict`, until it is left."""
    command = [sys.executable, "-m", "deploy.cli", "predict", "--stream", STREAM, "--port", "0"]
    command += ["--bootstrap-servers", str(served.kafka.bootstrap_servers), "--models", str(served.folder / "models")]
    command += ["--tracking-uri", served.registry.tracking_uri]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "OMP_NUM_THREADS": str(args.threads),
        "PALIMPSEST_PREDICTOR__THREADS": str(args.threads),
    }
    with (served.folder / "predictor.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def loop_rate(kind: Kind, values: Sequence[bytes]) -> float:
    """Requests a second of the plain network."""
    plain = classifier(kind, 1)
    given = [(value, kind.content_type) for value in values]
    plain.predict(given[:_LOOP_ROWS])
    began = time.perf_counter()
    for start in range(0, len(given), _LOOP_ROWS):
        plain.predict(given[start : start + _LOOP_ROWS])
    return len(given) / (time.perf_counter() - began)


def measure(kind: Kind, args: argparse.Namespace, count: int) -> dict[str, Any]:
    """One turn."""
    values = payloads(kind, count)
    figures: dict[str, Any] = {"loop_per_second": loop_rate(kind, values)}
    with served(kind, args.partitions) as stand, Reader(stand.kafka) as reader:
        # served
        ask(stand.kafka, kind, values, partitions=args.partitions, rate=None)
        with predictor(stand, args):
            reader.wait_for(count)
            came = [at for at, _ in reader.seen]
            # the first batch came when the clock begins
            first = sum(at == came[0] for at in came)
            figures["served_per_second"] = (count - first) / (came[-1] - came[0])
            figures["ratio"] = figures["served_per_second"] / figures["loop_per_second"]
            # latency
            rate = min(args.most_rate, figures["served_per_second"] / 3)
            figures["rate"] = rate
            paced = int(rate * args.seconds)
            sent = ask(stand.kafka, kind, _again(values, paced), partitions=args.partitions, rate=rate, first=count)
            reader.wait_for(count + paced)
            waited = [1000 * (at - sent[answer.request_id]) for at, answer in reader.seen[count:]]
            figures["latency_ms_p50"], figures["latency_ms_p99"] = map(float, np.percentile(waited, [50, 99]))
            # swaps
            figures["swaps"] = swaps(stand, reader, kind, values, args, rate, first=count + paced)
    return figures


def swaps(
    stand: Served, reader: Reader, kind: Kind, values: list[bytes], args: argparse.Namespace, rate: float, first: int
) -> list[dict[str, Any]]:
    """The alias back and forth, under load."""
    seconds = args.swaps * 2 * _SETTLED_SECONDS + 2 * _SETTLED_SECONDS
    load = threading.Thread(
        target=ask,
        args=(stand.kafka, kind, _again(values, int(rate * seconds))),
        kwargs={"partitions": args.partitions, "rate": rate, "first": first},
    )
    load.start()
    promoter = Promoter(stand.registry, STREAM, EventTeller(stand.kafka, STREAM).promoted)
    time.sleep(_SETTLED_SECONDS)
    found = []
    for number in range(args.swaps):
        version = 2 - number % 2
        told = number % 2 == 0
        moved = time.time()  # what moving it takes counts
        if told:
            found_version = stand.registry.find(STREAM, version)
            assert found_version is not None
            promoter.promote(found_version, by="benchmark", forced=True, figures={})
        else:
            stand.registry.set_alias(STREAM, "champion", version)
        deadline = time.monotonic() + _START_SECONDS
        while not any(at >= moved and answer.version == version for at, answer in reader.seen[-500:]):
            assert time.monotonic() < deadline, "the other version never answered"
            time.sleep(0.005)
        time.sleep(_SETTLED_SECONDS)
        swapped = next(at for at, answer in reader.seen if at >= moved and answer.version == version)
        around = _longest_gap(reader, swapped - _AROUND_SECONDS, swapped + _AROUND_SECONDS)
        usual = _longest_gap(reader, swapped + _AROUND_SECONDS, swapped + 3 * _AROUND_SECONDS)
        found.append({"told": told, "seconds": swapped - moved, "gap_ms": 1000 * around, "usual_gap_ms": 1000 * usual})
    load.join()
    return found


def _longest_gap(reader: Reader, since: float, until: float) -> float:
    times = sorted(at for at, _ in list(reader.seen) if since <= at <= until)
    return max((later - earlier for earlier, later in pairwise(times)), default=until - since)


def _line(figures: dict[str, Any]) -> str:
    loop, through = figures["loop_per_second"], figures["served_per_second"]
    p50, p99 = figures["latency_ms_p50"], figures["latency_ms_p99"]
    seconds = statistics.median(swap["seconds"] for swap in figures["swaps"])
    added = statistics.median(swap["gap_ms"] - swap["usual_gap_ms"] for swap in figures["swaps"])
    return (
        f"loop {loop:,.0f}/s, served {through:,.0f}/s; at {figures['rate']:,.0f}/s p50 {p50:.0f} ms, p99 {p99:.0f} ms; "
        f"a swap takes {seconds:.1f} s and adds {added:.0f} ms to the longest gap"
    )


def _again(values: list[bytes], count: int) -> list[bytes]:
    return [values[number % len(values)] for number in range(count)]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", choices=sorted(KINDS), nargs="+", default=["mlp", "resnet18"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--requests", type=int, nargs="+", default=[20_000, 4_000], help="of each kind")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0, help="of requests at a pace")
    parser.add_argument("--most-rate", type=float, default=500.0, help="a second, of requests at a pace")
    parser.add_argument("--swaps", type=int, default=6, help="in each turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    if len(args.requests) != len(args.kinds):
        args.requests = [args.requests[0]] * len(args.kinds)
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top. Raises `UserError` for what the user can put right."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    turns: dict[str, list[dict[str, Any]]] = {kind: [] for kind in args.kinds}
    for _ in range(args.turns):
        for kind, count in zip(args.kinds, args.requests, strict=True):
            figures = measure(KINDS[kind], args, count)
            turns[kind].append(figures)
            print(f"{kind}: {_line(figures)}", file=sys.stderr)
    result = {
        **circumstances("benchmarks.serving", arguments),
        "serving": turns,
        "threads": args.threads,
        "partitions": args.partitions,
        "requests": dict(zip(args.kinds, args.requests, strict=True)),
    }
    if args.json is not None:
        write_result(args.json, result)


if __name__ == "__main__":
    run(main, "serving")
