"""How fast records come in: polled, decoded and put into batches as the learner does it, beside a bare poll.

    python -m benchmarks.ingest --json FILE
    python -m benchmarks.ingest --records 50000 --repeats 5 --jpeg-side 32 96 --folder DIR --json FILE

Each kind of payload is a stream of its own on a real broker (the embedded one, or --bootstrap-servers): arrays of
28 x 28 float32 (3.1 KB), JPEGs of each --jpeg-side, and the files of an image folder if one is given. Three readers
take turns on it, each from the first offset to the last:

    ours    KafkaRecordSource, DecodeAhead, RecordDecoder, BatchAssembler: the learner, but for its updates
    raw     kafka-python's `KafkaConsumer.poll` with the same settings, in a process where nothing of it is mended
    script  raw, and the shortest decoding there is: numpy.load, or Pillow's Image.open

A turn is timed from its first poll until the last record was taken; connecting is not in it. A ratio is that of two
turns that stood beside each other, so that the machine's other work weighs on both; the processor's time, of all
threads of the reader's process, hangs less on it. `stages` is what a record costs in a single thread once it was
polled: to decode it, and to put it into a batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import statistics
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command_line import broker_at, run, write_result
from benchmarks.ingest_payloads import DISTINCT, arrays, jpegs
from benchmarks.ingest_readers import READERS, Intake, Turn, read_as_script, read_ours, read_raw, time_stages
from benchmarks.machine import circumstances
from consumers import topics
from consumers.kafka_settings import KafkaSettings
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.labelled_dataset import LabelledDataset
from producers.sample_producer import produce
from producers.sample_stream import SampleStream
from producers.schedules.split import Split


def measure(
    kafka: KafkaSettings, dataset: LabelledDataset, workers: ProcessPoolExecutor, *, records: int, repeats: int
) -> dict[str, Any]:
    """1. The stream, 2. the readers' turns, each time in another order, 3. the stages, 4. what it comes to."""
    # 1.
    stream = f"ingest-{dataset.name}-{uuid.uuid4().hex[:8]}"
    sample = SampleStream(dataset, Split(), records=records)
    report = produce(sample, stream_name=stream, kafka=kafka)
    assert report.labelled == records, f"{report.labelled} of {records} records were sent"
    # 2.
    servers, topic = kafka.bootstrap_servers, topics.samples(stream)
    assert servers is not None, "a benchmark says where its broker is"
    turns: dict[str, list[Turn]] = {reader: [] for reader in READERS}
    intakes: list[Intake] = []
    for repeat in range(repeats):
        shift = repeat % len(READERS)
        for reader in READERS[shift:] + READERS[:shift]:
            if reader == "ours":
                turn, intake = read_ours(kafka, stream, records)
                intakes.append(intake)
            else:
                read = read_raw if reader == "raw" else read_as_script
                turn = workers.submit(read, servers, topic, records).result()
            turns[reader].append(turn)
    assert all(intake == intakes[0] for intake in intakes), f"the same records came to {intakes}"
    # 3.
    stages = time_stages(kafka, stream, max(3, repeats))
    # 4.
    payloads = [len(dataset.payload(item)[0]) for item in range(min(len(dataset), DISTINCT))]
    processor = {
        reader: statistics.median(turn.processor_microseconds for turn in of_it) for reader, of_it in turns.items()
    }
    return {
        "payloads": dataset.name,
        "payload_bytes": statistics.fmean(payloads),
        "turns": {reader: [asdict(turn) for turn in of_it] for reader, of_it in turns.items()},
        "records_per_second": {
            reader: _spread([turn.records_per_second for turn in of_it]) for reader, of_it in turns.items()
        },
        "processor_microseconds": processor,
        "ratio_to_raw": _spread(_ratios(turns["ours"], turns["raw"])),
        "ratio_to_script": _spread(_ratios(turns["ours"], turns["script"])),
        "stages": asdict(stages),
        "decoding_share": stages.decode / processor["ours"],  # of the processor's time of ours
        "intake": asdict(intakes[0]),
    }


def _ratios(ours: Sequence[Turn], theirs: Sequence[Turn]) -> list[float]:
    return [a.records_per_second / b.records_per_second for a, b in zip(ours, theirs, strict=True)]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "each": list(values)}


def print_table(kinds: Sequence[Mapping[str, Any]]) -> None:
    """Records a second, and the ratios with their spread."""
    print(f"{'':12}{'':>7}  {'records a second':^26}  {'ours / raw':^18}  {'ours / script':^18}  processor us a record")
    print(
        f"{'payloads':12}{'bytes':>7}  {'ours':>8}{'raw':>9}{'script':>9}  {'median (least-most)':^18} "
        f"{'median (least-most)':^19}  {'ours':>6}{'raw':>6}{'script':>7}  decoding"
    )
    for kind in kinds:
        rates, processor = kind["records_per_second"], kind["processor_microseconds"]
        ratios = [
            f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})"
            for ratio in (kind["ratio_to_raw"], kind["ratio_to_script"])
        ]
        print(
            f"{kind['payloads']:12}{kind['payload_bytes']:7.0f}  {rates['ours']['median']:8,.0f}"
            f"{rates['raw']['median']:9,.0f}{rates['script']['median']:9,.0f}  {ratios[0]:^18}  {ratios[1]:^18}  "
            f"{processor['ours']:6.1f}{processor['raw']:6.1f}{processor['script']:7.1f}  {kind['decoding_share']:8.0%}"
        )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=50_000, help="of each kind of payload")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each reader")
    parser.add_argument("--jpeg-side", type=int, nargs="*", default=[32, 96], help="pixels; none: no JPEGs")
    parser.add_argument("--no-arrays", action="store_true")
    parser.add_argument("--folder", type=Path, help="also the JPEGs of a folder with a folder a class (CIFAR-10, ...)")
    parser.add_argument(
        "--bootstrap-servers", help="host:port[,host:port...], unencrypted; default: a broker of its own"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    for name in ("records", "repeats", *(() if not args.jpeg_side else ("jpeg_side",))):
        if np.min(getattr(args, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} is 1 or more")
    if args.no_arrays and not args.jpeg_side and args.folder is None:
        parser.error("nothing to read: give --jpeg-side or --folder, or leave out --no-arrays")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top. Raises `UserError` for what the user can put right."""
    args = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the broker must end with us
    result = circumstances("benchmarks.ingest", arguments)
    makers: list[Callable[[], LabelledDataset]] = [] if args.no_arrays else [lambda: arrays(args.records)]
    makers += [lambda side=side: jpegs(args.records, side) for side in args.jpeg_side]  # type: ignore[misc]
    if args.folder is not None:
        makers.append(lambda: open_dataset(f"folder:{args.folder}", DatasetOptions()))
    kinds: list[dict[str, Any]] = []
    # spawned, so that what ours mends of kafka-python is not mended there
    workers = ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
    with broker_at(args.bootstrap_servers) as kafka, workers:
        for made in makers:
            kinds.append(measure(kafka, made(), workers, records=args.records, repeats=args.repeats))
            print(f"{kinds[-1]['payloads']}: done", file=sys.stderr)
    print_table(kinds)
    if args.json is not None:
        result |= {"records": args.records, "repeats": args.repeats, "kinds": list(kinds)}
        write_result(args.json, result)


if __name__ == "__main__":
    run(main, "ingest")
