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
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.command_line import write_result
from benchmarks.growing_stream import BLOCK, Stream
from benchmarks.growth_checkpoints import Checkpoint, follow
from benchmarks.growth_paces import Pace, side_by_side
from benchmarks.machine import circumstances
from benchmarks.reservoir_cost import measure_reservoir
from deploy.logs import configure_logs

Result = TypeVar("Result")


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
    return max(1, round(records / BLOCK)) * BLOCK


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
    parser.add_argument("--records", type=int, default=1_000_000, help=f"like the first ones in whole {BLOCK}s")
    parser.add_argument("--inputs", type=int, default=64, help="numbers in a vector")
    parser.add_argument(
        "--evaluation-every",
        type=int,
        help="records between two evaluations; default: the settings'",
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
