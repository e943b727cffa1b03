"""`palimpsest` with faults: a real process that is killed, stopped or refused disk space where a test says so.

    FAULT_PLAN='{...}' python -m tests.faults.learner_entry learn --stream ...

It keeps a journal of what it does with each record, which the product does not: tests compare it with the log.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from model_store.fault_points import on_fault_point
from tests.faults.fault_plan import STEP_POINT, VARIABLE, Fault, FaultPlan
from tests.faults.journal import JournalWriter


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Ends as `palimpsest` ends: with `SystemExit`."""
    from deploy import cli

    plan = FaultPlan.from_environment(environment)
    journal = JournalWriter(plan.journal)
    on_fault_point(_Hook(plan, journal))
    _watch(journal)
    sys.argv = ["palimpsest", *arguments]
    cli.main()


class _Hook:
    """Called at every fault point, by the training thread or by the one that commits."""

    def __init__(self, plan: FaultPlan, journal: JournalWriter) -> None:
        self._plan = plan
        self._journal = journal
        self._lock = threading.Lock()
        self._reached: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        with self._lock:
            self._reached[name] += 1
            nth = self._reached[name]
        if name != STEP_POINT:
            self._journal.write({"point": name})
        for fault in self._plan.faults:
            if fault.point == name and fault.nth == nth:
                self._journal.write({"fault": name, "nth": nth, "deed": fault.deed})
                self._do(fault)
        if name == STEP_POINT and self._plan.step_seconds:
            time.sleep(self._plan.step_seconds)

    def _do(self, fault: Fault) -> None:
        match fault.deed:
            case "SIGKILL" | "SIGSTOP" | "SIGTERM":
                os.kill(os.getpid(), getattr(signal, fault.deed))
            case "limit_files":
                # Python ignores SIGXFSZ, so that a write past the limit fails with EFBIG and kills nobody.
                _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (self._plan.file_bytes, hard))
            case "lift_limit":
                _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _watch(journal: JournalWriter) -> None:
    """Journal what is loaded, every step, and every snapshot *before* it is written: one that a later process finds was
    then noted for certain, whatever killed its writer."""
    from consumers import saved_job
    from model_store.snapshot_store import SnapshotStore
    from pipeline.stream_learner import StreamLearner

    # A job that a test waits for is too short to be saved at its usual pace, and kills have to come between.
    saved_job._SAVED_EVERY_SECONDS = 0.05
    step, load_state = StreamLearner.step, StreamLearner.load_state
    write, load = SnapshotStore.write, SnapshotStore.load
    loaded: list[Any] = []

    def journaled_step(self: Any, batch: Any) -> Any:
        report = step(self, batch)
        done = report.batch
        journal.write(
            {
                "records_consumed": report.records_consumed,
                "trained": [sample.id for sample in done.trainable],
                "held_out": [sample.id for sample in done.held_out],
                "repeats": [[record.partition, record.offset] for record in done.duplicates],
                "dead": [[record.partition, record.offset] for record, _ in done.dead],
                # To the last bit: JSON gives a float back as it was.
                "loss": {}
                if report.update is None
                else {name: float(loss) for name, loss in report.update.loss.items()},
                "events": [
                    *(f"new_class/{name}" for name in (() if report.update is None else report.update.new_classes)),
                    *([f"drift/{report.records_consumed}"] if report.drift else []),
                ],
            }
        )
        return report

    def journaled_load(self: Any, entry: Any) -> Any:
        snapshot = load(self, entry)
        loaded.append(snapshot)
        return snapshot

    def journaled_load_state(self: Any, state: Any) -> None:
        records = state["records_consumed"]
        # The very tree that was read; where the start made another of it, the newest read that is as far.
        source = [snapshot for snapshot in loaded if snapshot.state is state] or [
            snapshot for snapshot in loaded if snapshot.state.get("records_consumed") == records
        ]
        newest = source[-1]
        journal.write({"resumed_from": [newest.generation, newest.sequence], "records_consumed": records})
        load_state(self, state)

    def journaled_write(self: Any, snapshot: Any) -> Any:
        if "records_consumed" in snapshot.state:  # else what a job saves of itself
            journal.write(
                {
                    "snapshot": [snapshot.generation, snapshot.sequence],
                    "records_consumed": snapshot.state["records_consumed"],
                }
            )
        return write(self, snapshot)

    StreamLearner.step = journaled_step  # type: ignore[method-assign]
    StreamLearner.load_state = journaled_load_state  # type: ignore[method-assign]
    SnapshotStore.load = journaled_load  # type: ignore[method-assign]
    SnapshotStore.write = journaled_write  # type: ignore[method-assign]


if __name__ == "__main__":
    assert VARIABLE in os.environ, f"{VARIABLE} says what is to happen"
    main(sys.argv[1:], os.environ)
