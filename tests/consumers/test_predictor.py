"""The predictor's loop on a request log in memory, and the metrics that it shows."""

from __future__ import annotations

import io
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumers import predictor_metrics
from consumers.memory_record_source import InMemoryLog
from consumers.memory_request_log import InMemoryRequestLog, InMemoryRequests
from consumers.model_slot import ModelSlot, ServingModel
from consumers.predictor import Predictor, PredictorObserver, PredictReport, Turn
from consumers.predictor_metrics import PredictorMetrics
from consumers.predictor_settings import PredictorSettings
from consumers.request_log import PredictorFenced, RequestLog
from model_store.snapshot import OutboxMessage
from pipeline.record import Partition, Record
from tests.model_store.tiny_servable import payload, tiny_classifier
from tests.waiting import wait_until

DEADLINE_SECONDS = 30.0
NPY = ("content-type", b"application/x-npy")


def serving(version: int) -> ServingModel:
    return ServingModel(version=version, run_id=f"run-{version}", classifier=tiny_classifier())


class WatchedLog(InMemoryRequestLog):
    """What was polled and answered, and members that come in between."""

    def __init__(self, requests: InMemoryRequests, instance: str) -> None:
        super().__init__(requests, instance)
        self.polls = 0
        self.batches: list[list[dict[str, Any]]] = []
        self.refuse_next = False
        self._shared = requests

    def poll(self, max_records: int, timeout_seconds: float) -> list[Record]:
        self.polls += 1
        return super().poll(max_records, min(timeout_seconds, 0.05))

    def answer(self, answers: Sequence[OutboxMessage]) -> bool:
        if self.refuse_next:
            self.refuse_next = False
            InMemoryRequestLog(self._shared, "passing").close()  # two rebalances
        done = super().answer(answers)
        if done and answers:
            self.batches.append([json.loads(answer.value or b"") for answer in answers])
        return done


class Turns(PredictorObserver):
    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.given: list[int] = []
        self.at_turn: Callable[[], object] = lambda: None
        self.at_answer: Callable[[], object] = lambda: None

    def turned(self, log: RequestLog) -> None:
        self.at_turn()

    def answered(self, turn: Turn) -> None:
        self.turns.append(turn)
        self.at_answer()

    def given_up(self, requests: int) -> None:
        self.given.append(requests)


class World:
    def __init__(self, partitions: int = 2, **settings: Any) -> None:
        self.asked = InMemoryLog("pets.requests", partitions)
        self.requests = InMemoryRequests(self.asked)
        self.slot, self.turns = ModelSlot(), Turns()
        self.looked = Path("nowhere") / "champion.looked"
        self.metrics = PredictorMetrics(
            stream="pets", role="champion", instance="one", looked=self.looked, stale_after_seconds=60.0
        )
        self.settings = PredictorSettings.model_validate(settings)
        self.log = WatchedLog(self.requests, "one")
        self.predictor = Predictor(
            self.log,
            self.slot,
            self.settings,
            stream="pets",
            role="champion",
            output="pets.predictions",
            observers=[self.metrics, self.turns],
        )

    def ask(self, number: int, value: bytes | None = None, *headers: tuple[str, bytes | None]) -> None:
        self.asked.append(
            payload(0.0, 1.0) if value is None else value,
            key=b"%d" % number,
            headers=headers or (("ce_id", b"id-%d" % number), NPY),
            partition=number % len(self.asked.partitions),
            timestamp_ms=time.time_ns() // 1_000_000,
        )

    def serve(self, version: int) -> None:
        """As the watch does."""
        before = self.slot.model
        model = serving(version)
        self.slot.put(model)
        self.metrics.serving(model, None if before is None else before.version, 0.01)

    def run(self) -> PredictReport:
        return self.predictor.run(threading.Event(), until_idle_seconds=0.0)

    @contextmanager
    def running(self) -> Iterator[threading.Event]:
        stop = threading.Event()
        thread = threading.Thread(target=self.predictor.run, args=(stop,))
        thread.start()
        try:
            yield stop
        finally:
            stop.set()
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()

    def ids(self) -> Counter[str]:
        return Counter(dict(answer.headers)["ce_id"].decode() for answer in self.requests.answers)  # type: ignore[union-attr]

    def shown(self) -> dict[tuple[str, ...], float]:
        """(sample's name, its labels' values) -> value, out of the page that is scraped."""
        text = generate_latest(self.metrics.registry).decode()
        return {
            (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def npy(x: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


def test_every_request_is_answered_once_with_its_own_label() -> None:
    world = World()
    world.serve(7)
    for number in range(300):
        world.ask(number, payload(float(number % 3), 1.5))
    report = world.run()
    assert report == PredictReport(answered=300, unreadable=0, stopped_by="idle")
    assert world.ids() == Counter({f"id-{number}": 1 for number in range(300)})
    for answer in world.requests.answers:
        said = json.loads(answer.value or b"")
        number = int(answer.key or b"")
        assert said["label"] == ("no" if number % 3 == 2 else "köln")
        assert (said["model"], said["version"], said["role"]) == ("pets", 7, "champion")
        assert answer.topic == "pets.predictions"
    in_order = [json.loads(answer.value or b"")["request"] for answer in world.requests.answers]
    for partition in (0, 1):
        offsets = [where["offset"] for where in in_order if where["partition"] == partition]
        assert offsets == list(range(150))


def test_a_batch_is_of_one_version_and_the_next_one_of_the_new_one() -> None:
    world = World(latency_seconds=60.0, most_requests=16)
    world.serve(1)
    with world.running():
        number = 0
        for version in (2, 3, 4):
            for _ in range(200):
                world.ask(number)
                number += 1
            world.serve(version)
            world.ask(number)
            number += 1
            wait_until(partial(lambda asked: len(world.ids()) == asked, number))
    versions = [{answer["version"] for answer in batch} for batch in world.log.batches]
    assert all(len(found) == 1 for found in versions), "an `answer` call holds one version's answers alone"
    of_batches = [found.pop() for found in versions]
    assert of_batches == sorted(of_batches)
    assert of_batches[-1] == 4
    assert max(map(len, world.log.batches)) <= 16
    assert world.ids() == Counter({f"id-{each}": 1 for each in range(number)})
    assert [turn.version for turn in world.turns.turns] == of_batches


def test_a_version_that_comes_while_it_polls_answers_at_once() -> None:
    """The batch was polled by then, and nothing of it computed."""
    world = World()
    world.serve(1)
    polled = world.log.poll

    def poll(max_records: int, timeout_seconds: float) -> list[Record]:
        found = polled(max_records, timeout_seconds)
        world.serve(2)
        return found

    world.log.poll = poll  # type: ignore[method-assign]
    world.ask(0)
    assert world.run().answered == 1
    assert world.turns.turns[0].version == 2


def test_nothing_is_polled_before_there_is_a_version() -> None:
    world = World()
    world.ask(0)
    turned: list[float] = []
    world.turns.at_turn = lambda: turned.append(world.metrics.last_turn)
    with world.running():
        wait_until(lambda: len(turned) >= 3)
        assert (world.log.polls, world.metrics.ready, world.requests.answers) == (0, False, [])
        assert turned[-1] > turned[0], "it lives, all the same"
        world.serve(1)
        wait_until(lambda: world.requests.answers)
    assert world.metrics.ready


def test_waiting_for_a_version_is_not_being_idle() -> None:
    world = World()
    world.ask(0)
    reports: list[PredictReport] = []
    thread = threading.Thread(target=lambda: reports.append(world.predictor.run(threading.Event(), 0.0)))
    turned = threading.Event()
    world.turns.at_turn = turned.set
    thread.start()
    assert turned.wait(DEADLINE_SECONDS)
    world.serve(1)
    thread.join(DEADLINE_SECONDS)
    assert reports == [PredictReport(answered=1, unreadable=0, stopped_by="idle")]


def test_what_cannot_be_read_is_answered_too() -> None:
    world = World(partitions=1)
    world.serve(1)
    bad: list[tuple[bytes, tuple[str, bytes | None], str]] = [
        (b"", NPY, "no_payload"),
        (b"no array", NPY, "broken_array"),
        (payload(1.0, 2.0), ("content-type", b"application/x-unknown"), "unknown_content_type"),
        (payload(1.0, 2.0), ("content-type", b"\xff"), "unknown_content_type"),
        (payload(1.0, 2.0), ("content-type", None), "unknown_content_type"),
        (payload(float("nan"), 2.0), NPY, "not_finite"),
        (b'{"value": [1, 2, 3]}', ("content-type", b"application/json"), "no_payload"),
        (npy(np.zeros(3, np.float32)), NPY, "wrong_shape"),
        (npy(np.zeros((1, 8, 8), np.uint8)), ("content-type", b"image/png"), "broken_image"),
    ]
    for number, (value, header, _) in enumerate(bad):
        world.ask(number, value, header)
    world.asked.append(None)
    world.ask(99)
    report = world.run()
    assert report == PredictReport(answered=11, unreadable=10, stopped_by="idle")
    told = [json.loads(answer.value or b"") for answer in world.requests.answers]
    reasons = [said.get("error", {}).get("reason") for said in told]
    assert reasons[-2:] == ["no_payload", None]
    for reason, (_, _, wanted) in zip(reasons, bad, strict=False):
        assert reason == wanted
    assert told[-1]["label"] == "köln"


def test_values_so_large_that_the_network_overflows_are_no_answer() -> None:
    """NaN is no JSON, and the label would be any."""
    world = World(partitions=1)
    world.serve(1)
    world.ask(0, payload(3e38, 3e38))
    network = world.slot.model.classifier.network  # type: ignore[union-attr]
    for parameter in network.parameters():
        parameter.data.mul_(10)
    assert world.run().unreadable == 1
    (answer,) = world.requests.answers
    said = json.loads(answer.value or b"", parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert said["error"]["reason"] == "not_finite"


def test_headers_are_read_as_the_decoder_reads_them() -> None:
    world = World(partitions=1)
    world.serve(1)
    world.ask(0, None, ("Content-Type", b"text/plain"), ("CONTENT-TYPE", NPY[1]), ("content-type", None))
    assert world.run() == PredictReport(answered=1, unreadable=0, stopped_by="idle")


def test_a_batch_that_could_not_be_committed_is_answered_again_once() -> None:
    world = World()
    world.serve(1)
    for number in range(20):
        world.ask(number)
    world.log.refuse_next = True
    report = world.run()
    assert report.answered == 20
    assert world.turns.given == [20]
    assert world.ids() == Counter({f"id-{number}": 1 for number in range(20)})
    shown = world.shown()
    assert shown["palimpsest_answers_given_up_total", "champion"] == 20
    assert shown["palimpsest_answers_total", "answered", "champion"] == 20


def test_until_idle_waits_for_so_long_after_the_last_request() -> None:
    world = World()
    world.serve(1)
    world.ask(0)
    began = time.monotonic()
    report = world.predictor.run(threading.Event(), until_idle_seconds=0.3)
    assert report == PredictReport(answered=1, unreadable=0, stopped_by="idle")
    assert time.monotonic() - began >= 0.3


def test_joining_a_group_is_not_being_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.serve(1)
    polls: list[int] = []

    def joins_late(most: int, timeout_seconds: float) -> list[Record]:
        """At the third poll. What was asked meanwhile is there then."""
        polls.append(most)
        return [] if len(polls) < 3 else InMemoryRequestLog.poll(world.log, most, timeout_seconds)

    monkeypatch.setattr(world.log, "poll", joins_late)
    world.ask(0)
    assert world.run() == PredictReport(answered=1, unreadable=0, stopped_by="idle")


def test_a_stop_ends_it_between_two_batches() -> None:
    world = World(most_requests=4)
    world.serve(1)
    for number in range(40):
        world.ask(number)
    stop = threading.Event()
    world.turns.at_answer = stop.set
    report = world.predictor.run(stop)
    assert report == PredictReport(answered=4, unreadable=0, stopped_by="signal")
    assert len(world.requests.answers) == 4
    assert world.predictor.run(stop) == PredictReport(answered=0, unreadable=0, stopped_by="signal")


def test_a_successor_of_its_instance_ends_it() -> None:
    world = World()
    world.serve(1)
    world.ask(0)
    InMemoryRequestLog(world.requests, "one")
    with pytest.raises(PredictorFenced):
        world.run()
    assert world.requests.answers == []


def test_the_metrics_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_metrics, "_LAG_SECONDS", 0.0)
    world = World()
    shown = world.shown()
    assert shown["palimpsest_answers_total", "answered", "champion"] == 0
    assert shown["palimpsest_answers_total", "unreadable", "champion"] == 0
    assert not [name for name in shown if name[0] == "palimpsest_model_info"]
    world.serve(7)
    for number in range(10):
        world.ask(number, b"no array" if number < 3 else None)
    world.run()
    world.serve(8)
    world.metrics.version_refused(9, "broken")
    for status in (200, 200, 503):
        world.metrics.http_answered(status)
    world.ask(0)
    world.asked.append(b"later", partition=1)
    world.run()
    shown = world.shown()
    assert shown["palimpsest_answers_total", "answered", "champion"] == 8
    assert shown["palimpsest_answers_total", "unreadable", "champion"] == 4
    assert shown["palimpsest_answer_batch_requests_count", "champion"] == len(world.turns.turns)
    assert shown["palimpsest_answer_batch_requests_sum", "champion"] == 12
    assert shown["palimpsest_answer_latency_seconds_count", "champion"] == 11, (
        "of the one without a time nobody knows it"
    )
    for stage in ("predict", "transaction"):
        assert shown["palimpsest_answer_duration_seconds_count", "champion", stage] == len(world.turns.turns)
    assert [shown["palimpsest_request_lag_records", number, "pets.requests"] for number in "01"] == [0, 0]
    assert shown["palimpsest_http_predictions_total", "champion", "200"] == 2
    assert shown["palimpsest_http_predictions_total", "champion", "503"] == 1
    infos = [name for name in shown if name[0] == "palimpsest_model_info"]
    assert infos == [("palimpsest_model_info", "champion", "run-8", "8")]
    assert shown["palimpsest_served_version", "champion"] == 8
    assert shown["palimpsest_model_swaps_total", "champion"] == 2
    assert shown["palimpsest_model_refusals_total", "champion"] == 1


def test_when_mlflow_answered_last_is_shown(tmp_path: Path) -> None:
    looked = tmp_path / "champion.looked"
    metrics = PredictorMetrics(stream="pets", role="champion", instance="one", looked=looked, stale_after_seconds=60.0)

    def shown() -> float | None:
        return metrics.registry.get_sample_value("palimpsest_alias_last_look_timestamp_seconds", {"role": "champion"})

    assert math.isnan(shown() or 0.0)
    looked.touch()
    os.utime(looked, (1_000.0, 2_000.5))
    assert shown() == 2_000.5


@pytest.mark.parametrize(("timestamp_ms", "observed"), [(-1, 0), (0, 0), (1, 1), (1_700_000_000_000, 1)])
def test_a_request_without_a_time_has_no_latency(timestamp_ms: int, observed: int) -> None:
    world = World()
    request = Record("pets.requests", 0, 0, b"x", None, (), timestamp_ms)
    world.metrics.answered(
        Turn(
            requests=[request],
            unreadable=0,
            version=1,
            predict_seconds=0.1,
            transaction_seconds=0.1,
            answered_at=1_700_000_001.0,
        )
    )
    shown = world.shown()
    assert shown["palimpsest_answer_latency_seconds_count", "champion"] == observed
    assert shown["palimpsest_answers_total", "answered", "champion"] == 1


def test_no_scrape_finds_a_gauge_empty_while_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes in the midst of a change finds what was, or what is, or both."""
    monkeypatch.setattr(predictor_metrics, "_LAG_SECONDS", 0.0)
    world = World()
    lags = {Partition("pets.requests", 0): 5, Partition("pets.requests", 1): 6}
    monkeypatch.setattr(world.log, "lag_records", lambda: lags)

    def partitions() -> set[str]:
        return {name[1] for name in world.shown() if name[0] == "palimpsest_request_lag_records"}

    def versions() -> set[str]:
        return {name[-1] for name in world.shown() if name[0] == "palimpsest_model_info"}

    world.metrics.turned(world.log)
    world.metrics.serving(serving(1), None, 0.01)
    seen: list[set[str]] = []
    labels = Gauge.labels

    def scraped(gauge: Gauge, *values: str) -> Gauge:
        seen.append(partitions())
        seen.append(versions())
        return labels(gauge, *values)

    monkeypatch.setattr(Gauge, "labels", scraped)
    lags = {Partition("pets.requests", 1): 7, Partition("pets.requests", 2): 8}
    world.metrics.turned(world.log)
    world.metrics.serving(serving(2), 1, 0.01)
    world.metrics.serving(serving(2), 2, 0.01)
    assert len(seen) == 8
    assert all(seen)
    assert (partitions(), versions()) == ({"1", "2"}, {"2"})
