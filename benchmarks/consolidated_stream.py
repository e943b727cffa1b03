"""What a consolidation does to a learner in the midst of its stream: at once, and to what it learns afterwards.

    python -m benchmarks.consolidated_stream --seeds 0 1 2 --data-root DIR --json FILE

Blurred MNIST, two new classes a step, 15 % of the records without labels. The learner's own trigger asks once, for four
new classes that have settled; the job is done with the stream's settings, and adopted where it was asked for. Half of
the test part judges (5,000 images), as the mean over the classes' accuracies:

    parent              the learner's network where the job was asked for, on the classes it knows
    plain DMC, student  two teachers, one student, as in the paper; then the defaults
    end                 after the last record, on all ten classes: without an adoption, and after each
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.command_line import command_of, run, write_result
from benchmarks.machine import machine
from benchmarks.streams.benchmark_stream import decoded
from pipeline.codec.record_decoder import RecordDecoder
from pipeline.device import choose_device, configure_torch
from pipeline.record import Record
from pipeline.restructuring.consolidation import consolidation_of
from pipeline.restructuring.consolidation_settings import PLAIN_DMC, ConsolidationSettings
from pipeline.restructuring.replaced_network import with_network
from pipeline.sample import Decoded
from pipeline.settings import LearnerSettings
from pipeline.state import StateTree
from pipeline.stream_learner import StreamLearner
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_stream import SampleStream
from producers.schedules.blurred import Blurred

_NEW_CLASSES = 4
_STATE_EVERY = 250  # records: any of these may be the base
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain DMC": PLAIN_DMC,
    "two teachers, gated and replayed": {"parent_weight": 0.0, "initialisation": "old_teacher"},
    "defaults": {},
}


class Stream:
    """Decoded records of one seed, and the test part."""

    def __init__(self, data_root: Path, seed: int, records: int) -> None:
        stream = SampleStream(
            open_dataset("mnist", DatasetOptions(data_root=data_root)),
            Blurred(),
            seed=seed,
            records=records,
            unlabelled_share=0.15,
        )
        settings = LearnerSettings().input
        labelled, plain = RecordDecoder(settings), RecordDecoder(settings, labelled=False)
        self.records: list[Decoded] = []
        self.unlabelled: list[npt.NDArray[np.generic]] = []
        for number in range(records):
            event = stream.record(number).event
            record = Record("mnist.samples", 0, len(self.records), event.data, headers=tuple(event.headers()))
            if event.label is not None:
                self.records.append(labelled.decode(record))
            elif (sample := plain.decode(record).sample) is not None:
                self.unlabelled.append(sample.x)
        test = open_dataset("mnist", DatasetOptions(data_root=data_root, split="test"))
        chosen = range(0, len(test), 2)
        self.test_x = decoded([test.payload(item) for item in chosen], {})
        self.test_labels = np.array([test.classes[int(test.labels[item])] for item in chosen])

    def accuracy(self, learner: StreamLearner, classes: Sequence[str]) -> float:
        """The mean over these classes."""
        names = np.array(learner.class_names)
        parts = np.array_split(self.test_x, 10)
        right = names[np.concatenate([learner.predict_columns(part) for part in parts])] == self.test_labels
        return statistics.fmean(float(right[self.test_labels == name].mean()) for name in classes)


class Course:
    """The stream learnt once, with the states that a job begins with."""

    def __init__(self, stream: Stream, settings: LearnerSettings) -> None:
        self.stream, self.settings = stream, settings
        self.states: dict[int, StateTree] = {}  # records consumed -> state
        self.parent_at = self.base_at = 0
        learner = StreamLearner(settings)
        for one in stream.records:
            if learner.add(one):
                report = learner.step(learner.assembler.take())
                now = report.records_consumed
                if report.request is not None:
                    self.parent_at, base_at = now, learner.trigger.base_at_records
                    assert base_at is not None, "there are new classes"
                    self.base_at = max(at for at in self.states if at <= base_at)
                if report.request is not None or now // _STATE_EVERY != (now - report.batch.records) // _STATE_EVERY:
                    self.states[now] = copy.deepcopy(learner.state())
        assert self.parent_at, "the stream is too short: nothing was asked for"
        self.end = learner

    def loaded(self, state: StateTree) -> StreamLearner:
        learner = StreamLearner(self.settings)
        learner.load_state(state)
        return learner

    def after(self, state: StateTree) -> StreamLearner:
        """The rest of the stream, from the parent's place on."""
        learner = self.loaded(state)
        for one in self.stream.records[self.parent_at :]:
            if learner.add(one):
                learner.step(learner.assembler.take())
        return learner

    def student(self, changes: Mapping[str, Any]) -> StateTree:
        parent, base = self.states[self.parent_at], self.states[self.base_at]
        between = [one.sample for one in self.stream.records[self.base_at : self.parent_at] if one.sample is not None]
        hold_out = self.end.hold_out
        labelled = [(one.x, one.label) for one in between if one.label is not None and not hold_out.chooses(one)]
        job = consolidation_of(
            parent,
            base,
            labelled,
            self.stream.unlabelled,
            ConsolidationSettings.model_validate(changes),
            device=choose_device(self.settings.device),
            seed=self.settings.seed,
        )
        student = job.run()
        assert student is not None, "nobody stops it"
        return with_network(parent, student, self.settings)


def measure(args: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """{row: {"then": ..., "end": ...}} for one seed."""
    asks = {
        "new_classes": _NEW_CLASSES,
        "settle_records": args.records // 8,
        "rest_records": args.records,
        "expand_below": None,
    }
    replay = {"capacity": args.buffer}
    settings = LearnerSettings.model_validate(
        {"seed": seed, "device": args.device, "threads": args.threads, "restructuring": asks, "replay": replay}
    )
    configure_torch(settings)
    course = Course(Stream(args.data_root, seed, args.records), settings)
    stream, parent = course.stream, course.loaded(course.states[course.parent_at])
    known, every = parent.class_names, course.end.class_names
    rows = {"no adoption": {"then": stream.accuracy(parent, known), "end": stream.accuracy(course.end, every)}}
    for name, changes in VARIANTS.items():
        began = time.perf_counter()
        state = course.student(changes)
        seconds = time.perf_counter() - began
        rows[name] = {
            "then": stream.accuracy(course.loaded(state), known),
            "end": stream.accuracy(course.after(state), every),
            "seconds": seconds,
        }
    for name, row in rows.items():
        print(f"seed {seed} {name}: then {row['then']:.2%}, end {row['end']:.2%}", file=sys.stderr, flush=True)
    return rows


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=12_000)
    parser.add_argument("--buffer", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    args.command = command_of("benchmarks.consolidated_stream", arguments)
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """As described on top. Raises `UserError` for what the user can put right."""
    args = parse(arguments)
    runs = [{"seed": seed, "rows": measure(args, seed)} for seed in args.seeds]
    if args.json is not None:
        write_result(
            args.json,
            {
                "command": args.command,
                "consolidated_stream": {"records": args.records, "buffer": args.buffer},
                "seeds": args.seeds,
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "machine": machine(),
                "runs": runs,
            },
        )


if __name__ == "__main__":
    run(main, "consolidated_stream")
