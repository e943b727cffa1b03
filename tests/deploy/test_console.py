from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consumers.learner_process import RunReport
from consumers.snapshot_commit import CommitReport
from deploy import console as console_module
from deploy import event_lines
from deploy.console import ConsoleObserver
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.restructuring.trigger import Request
from pipeline.stream_learner import StepReport, StreamLearner


class Clock:
    """time.monotonic and time.time, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console_module, "time", clock)
    monkeypatch.setattr(event_lines, "time", clock)
    return clock


def learner(consumed: int, classes: int) -> StreamLearner:
    prequential = SimpleNamespace(accuracy=0.75)
    names = [f"class {number}" for number in range(classes)]
    return cast(StreamLearner, SimpleNamespace(records_consumed=consumed, class_names=names, prequential=prequential))


def step(
    consumed: int, *, new_classes: tuple[str, ...] = (), drift: bool = False, request: Request | None = None
) -> StepReport:
    update = SimpleNamespace(new_classes=new_classes)
    return cast(StepReport, SimpleNamespace(records_consumed=consumed, update=update, drift=drift, request=request))


def evaluation(accuracy: float, forgetting: float | None) -> EvaluationReport:
    worst = "köln"
    return cast(
        EvaluationReport,
        SimpleNamespace(average_accuracy=accuracy, average_forgetting=forgetting, worst_class=worst),
    )


def run_report() -> RunReport:
    return RunReport(
        records=1234,
        seconds=5.25,
        busy_seconds=3.0,
        sequence=7,
        waiting_registrations=2,
        stopped_by="max_records",
    )


def everything(observer: ConsoleObserver, clock: Clock) -> None:
    """A life, from start to end."""
    observer.started(learner(0, 0), False)
    observer.metrics_shown("http://127.0.0.1:9095")
    observer.turned({Partition("s.samples", 0): 12_000, Partition("s.samples", 1): 345})
    clock.now += 1.0
    observer.stepped(learner(500, 2), step(500, new_classes=("köln", "bonn")))
    clock.now += 1.0
    observer.stepped(learner(1000, 2), step(1000))
    observer.evaluated(learner(1000, 2), evaluation(1.0, None))
    observer.turned({Partition("s.samples", 0): 0})
    observer.turned({})  # it waits for a commit
    clock.now += 4.0
    observer.stepped(learner(1_234_567, 12), step(1_234_567, drift=True))
    observer.evaluated(learner(1_234_567, 2), evaluation(0.875, 0.0625))
    clock.now += 2.0
    observer.stepped(learner(1_234_567, 123), step(1_234_567))
    entry = SimpleNamespace(generation=2, sequence=3, bytes=4567, path=Path("x"))
    observer.committed(cast(CommitReport, SimpleNamespace(entry=entry)))
    observer.commit_failed(OSError(28, "No space left on device"))
    observer.registered("5", "run")
    observer.warned("the brokers are away")
    observer.stopped(run_report())
    observer.failed(RuntimeError("two\nlines"), 4)


def test_lines_for_a_person(clock: Clock) -> None:
    out = io.StringIO()
    everything(ConsoleObserver(out, as_json=False), clock)
    assert out.getvalue().splitlines() == [
        "started; nothing learnt yet",
        "page: http://127.0.0.1:9095/  metrics: http://127.0.0.1:9095/metrics",
        "             new: köln, bonn",
        "      1,000 records      500/s  lag    12,345     2 classes",
        "             drift of the prequential error",
        "  1,234,567 records  308,392/s  lag         0    12 classes  accuracy 100.0%  worst: köln",
        "  1,234,567 records        0/s  lag         0   123 classes  accuracy  87.5%  forgetting   6.2%  worst: köln",
        "warning: a snapshot could not be written: [Errno 28] No space left on device; learning goes on",
        "             version 5 is in MLflow",
        "warning: the brokers are away",
        "stopped (max records): 1,234 records in 5.2 s, snapshot 7",
        "palimpsest: two lines",
    ]


def test_one_json_object_a_line_for_a_log_collector(clock: Clock) -> None:
    out = io.StringIO()
    everything(ConsoleObserver(out), clock)  # a StringIO is no terminal
    told: list[dict[str, Any]] = [json.loads(line) for line in out.getvalue().splitlines()]
    assert all(type(facts["time"]) is float for facts in told)
    assert [facts["event"] for facts in told] == [
        "started",
        "metrics",
        "new_class",
        "learning",
        "drift",
        "learning",
        "learning",
        "snapshot",
        "snapshot_failed",
        "version",
        "warning",
        "stopped",
        "failed",
    ]
    assert told[0] | {"time": 0} == {
        "time": 0,
        "event": "started",
        "resumed": False,
        "records_consumed": 0,
        "classes": 0,
    }
    assert told[6] | {"time": 0} == {
        "time": 0,
        "event": "learning",
        "records_consumed": 1_234_567,
        "records_per_second": 0.0,
        "lag_records": 0,
        "classes": 123,
        "prequential_accuracy": 0.75,
        "average_accuracy": 0.875,
        "average_forgetting": 0.0625,
        "worst_class": "köln",
    }
    assert told[11]["waiting_registrations"] == 2
    assert (told[12]["message"], told[12]["exit_code"]) == ("two lines", 4)


def test_a_resumed_learner_says_from_where_and_counts_its_rate_from_there(clock: Clock) -> None:
    out = io.StringIO()
    observer = ConsoleObserver(out, as_json=False)
    clock.now += 60.0  # connecting, loading
    observer.started(learner(5_000, 4), True)
    clock.now += 2.0
    observer.stepped(learner(5_100, 4), step(5_100))
    assert out.getvalue().splitlines() == [
        "resumed after 5,000 records, 4 classes known",
        "      5,100 records       50/s  lag         -     4 classes",  # nobody asked yet where the log ends
    ]


def test_without_a_stream_it_speaks_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleObserver(as_json=False).warned("here")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: here\n")
