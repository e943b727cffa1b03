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
import os
import signal
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kafka import KafkaConsumer, TopicPartition
from PIL import Image

from benchmarks.command_line import broker_at, command_of, run, write_result
from benchmarks.machine import machine
from consumers import topics
from consumers.decode_ahead import DecodeAhead, Idle
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_settings import KafkaSettings
from consumers.process_settings import StreamSettings
from consumers.record_source import read_records
from consumers.settled_objects import settled
from pipeline import keyed_randomness
from pipeline.codec.image import encode_jpeg
from pipeline.codec.npy import encode_npy
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.learner import UpdateReport
from pipeline.micro_batch import MicroBatch
from pipeline.sample import Decoded
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StreamLearner
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.labelled_dataset import LabelledDataset
from producers.sample_producer import produce
from producers.sample_stream import SampleStream
from producers.schedules.split import Split

READERS = ("ours", "raw", "script")

_CLASSES = 10
# So many payloads are made, and sent again and again: the bytes to be read are as many.
_DISTINCT = 512
_POLL_SECONDS = 0.25
# A reader that gets nothing for so long has lost records, and would wait for ever.
_PATIENCE_SECONDS = 60.0
# Stages are timed on so many records at most: they lie in memory all at once, decoded.
_STAGE_RECORDS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One reader's way through the topic."""

    records: int
    seconds: float
    processor_seconds: float  # of all threads of the reader's process

    @property
    def records_per_second(self) -> float:
        return self.records / self.seconds

    @property
    def processor_microseconds(self) -> float:
        """Per record."""
        return 1e6 * self.processor_seconds / self.records


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What became of the records of a turn of ours; together they are all."""

    trainable: int
    held_out: int
    duplicates: int
    dead: int
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Microseconds of the processor a record, in a single thread: the least of all repeats."""

    decode: float  # RecordDecoder
    batch: float  # BatchAssembler, MicroBatch.x, and what else a step does around its update
    script_decode: float  # what `script` decodes with


class PreparedPayloads(LabelledDataset):
    """Payloads made beforehand, in turn; each item is an original of its own, and its number's last digit its class."""

    def __init__(self, name: str, content_type: str, payloads: Sequence[bytes], items: int) -> None:
        self.name = name
        self.labels = np.arange(items, dtype=np.int64) % min(items, _CLASSES)
        self.classes = tuple(str(number) for number in range(min(items, _CLASSES)))
        self._content_type = content_type
        self._payloads = payloads

    def payload(self, i: int) -> tuple[bytes, str]:
        return self._payloads[i % len(self._payloads)], self._content_type

    def augmented_payload(
        self, i: int, generator: np.random.Generator | None, turn_degrees: float = 0.0
    ) -> tuple[bytes, str]:
        return self.payload(i)  # reading a repeat costs the same


def arrays(items: int) -> PreparedPayloads:
    """float32 in 0..1, as MNIST's images are sent with `--encoding npy`."""
    x_NHW = keyed_randomness.generator(0, "ingest/arrays").random((min(items, _DISTINCT), 28, 28), dtype=np.float32)
    return PreparedPayloads("arrays", "application/x-npy", [encode_npy(x_HW) for x_HW in x_NHW], items)


def jpegs(items: int, side: int) -> PreparedPayloads:
    """Blotches of colour under a little noise: about as many bytes a pixel as photographs have."""
    generator = keyed_randomness.generator(0, "ingest/jpegs")
    payloads = []
    for _ in range(min(items, _DISTINCT)):
        coarse_HWC = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        smooth_HWC = np.asarray(Image.fromarray(coarse_HWC).resize((side, side), Image.Resampling.BICUBIC))
        noisy_HWC = np.clip(smooth_HWC + generator.normal(0.0, 8.0, smooth_HWC.shape), 0, 255).astype(np.uint8)
        payloads.append(encode_jpeg(np.ascontiguousarray(noisy_HWC.transpose(2, 0, 1))))
    return PreparedPayloads(f"jpegs-{side}", "image/jpeg", payloads, items)


class IntakeOnly(StreamLearner):
    """The learner, but for its updates: batches are put together as for one, and what they hold is taken in."""

    def __init__(self, settings: LearnerSettings) -> None:
        super().__init__(settings)
        self._trainable = self._duplicates = self._dead = self._batches = 0

    def _learn(self, batch: MicroBatch) -> tuple[MicroBatch, UpdateReport | None]:
        """What the learner's own hands to an update."""
        if batch.trainable:
            x, labels = batch.x, batch.labels
            subjects = np.array(batch.subjects, dtype=np.int64)
            assert len(x) == len(labels) == len(subjects), f"{len(x)} rows, {len(labels)} labels"
        self._trainable += len(batch.trainable)
        self._duplicates += len(batch.duplicates)
        self._dead += len(batch.dead)
        self._batches += 1
        return batch, None

    @property
    def intake(self) -> Intake:
        return Intake(
            trainable=self._trainable,
            held_out=self.records_held_out,
            duplicates=self._duplicates,
            dead=self._dead,
            batches=self._batches,
        )


# The readers


class _Clock:
    """Times a reader from here until it has taken all records."""

    def __init__(self, records: int) -> None:
        self._records = records
        self._taken = 0
        self._processor_began = time.process_time()
        self._began = self._heard_at = time.perf_counter()

    @property
    def goes_on(self) -> bool:
        if self._taken >= self._records:
            return False
        if time.perf_counter() - self._heard_at > _PATIENCE_SECONDS:
            raise UserError(f"only {self._taken} of {self._records} records came; look at the broker's log, and repeat")
        return True

    def took(self, records: int) -> None:
        if records:
            self._taken += records
            self._heard_at = time.perf_counter()

    def turn(self) -> Turn:
        assert self._taken == self._records, f"{self._taken} records were read, {self._records} had been sent"
        return Turn(
            records=self._taken,
            seconds=time.perf_counter() - self._began,
            processor_seconds=time.process_time() - self._processor_began,
        )


def read_ours(kafka: KafkaSettings, stream: str, records: int) -> tuple[Turn, Intake]:
    """As consumers/learner_process.py reads; the last, partial batch is flushed."""
    settings, learner = StreamSettings(), IntakeOnly(LearnerSettings())
    with KafkaRecordSource(kafka, topics.check_samples_topic(kafka, stream).partitions) as source:
        ahead = DecodeAhead(
            source,
            RecordDecoder(learner.settings.input).decode,
            capacity_records=settings.decode_ahead_records,
            poll_seconds=settings.poll_seconds,
        )
        with settled():
            clock = _Clock(records)
            with ahead:
                while clock.goes_on:
                    taken = ahead.take(settings.poll_seconds)
                    if isinstance(taken, Idle):
                        continue
                    for decoded in taken:
                        if learner.add(decoded):
                            learner.step(learner.assembler.take())
                    clock.took(len(taken))
                while learner.flush() is not None:
                    pass
                turn = clock.turn()
    return turn, learner.intake


def raw_options(bootstrap_servers: str) -> dict[str, Any]:
    """What makes a fetch cost what it costs ours; tests/benchmarks/test_ingest.py holds the two together."""
    return {
        "bootstrap_servers": bootstrap_servers.split(","),
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "check_crcs": True,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
        "fetch_max_wait_ms": 100,
    }


def read_raw(bootstrap_servers: str, topic: str, records: int) -> Turn:
    """`poll`, and nothing with what it gives."""
    return _poll_all(bootstrap_servers, topic, records, None)


def read_as_script(bootstrap_servers: str, topic: str, records: int) -> Turn:
    """`poll`, and an array of each value."""
    return _poll_all(bootstrap_servers, topic, records, array_of)


def array_of(value: bytes) -> npt.NDArray[Any]:
    """What a script of ten lines would do with a value."""
    if value.startswith(b"\x93NUMPY"):
        return np.asarray(np.load(BytesIO(value)))
    return np.asarray(Image.open(BytesIO(value)).convert("RGB"))


def _poll_all(bootstrap_servers: str, topic: str, records: int, use: Callable[[bytes], object] | None) -> Turn:
    consumer = KafkaConsumer(**raw_options(bootstrap_servers))
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        clock = _Clock(records)
        while clock.goes_on:
            for polled in consumer.poll(timeout_ms=int(1000 * _POLL_SECONDS)).values():
                if use is not None:
                    for record in polled:
                        use(record.value)
                clock.took(len(polled))
        return clock.turn()
    finally:
        consumer.close(autocommit=False)


def time_stages(kafka: KafkaSettings, stream: str, repeats: int) -> Stages:
    """On the first records of the topic."""
    with KafkaRecordSource(kafka, topics.check_samples_topic(kafka, stream).partitions) as source:
        begin, end = source.beginning_offsets(), source.end_offsets()
        end = {partition: min(offset, begin[partition] + _STAGE_RECORDS) for partition, offset in end.items()}
        records = list(read_records(source, begin, end))
    values = [record.value or b"" for record in records]
    decoder = RecordDecoder(LearnerSettings().input)
    decoded = [decoder.decode(record) for record in records]

    def assemble() -> None:
        learner = IntakeOnly(LearnerSettings())
        for each in decoded:
            if learner.add(each):
                learner.step(learner.assembler.take())

    def least(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(repeats):
            began = time.process_time()
            work()
            seconds.append(time.process_time() - began)
        return 1e6 * min(seconds) / len(records)

    def decode() -> Decoded | None:
        last = None
        for record in records:
            last = decoder.decode(record)
        return last

    def decode_as_script() -> None:
        for value in values:
            array_of(value)

    return Stages(decode=least(decode), batch=least(assemble), script_decode=least(decode_as_script))


# The measurement


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
    payloads = [len(dataset.payload(item)[0]) for item in range(min(len(dataset), _DISTINCT))]
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


def circumstances(module: str, arguments: Sequence[str] | None) -> dict[str, Any]:
    """When, how and where a benchmark was run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_of(module, arguments),
        "machine": machine(),
        "versions": {name: version(name) for name in ("palimpsest", "numpy", "kafka-python", "pillow")},
        "load_before": list(os.getloadavg()),  # of 1, 5 and 15 minutes: other work shows here
    }


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
