"""`palimpsest restructure` beside a learner, on a real broker."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from consumers import topics
from consumers.requested_jobs import requested_job
from consumers.restructuring_job import job_name
from consumers.worker_metrics import WorkerMetrics
from consumers.worker_observer import WorkerObserver
from deploy.commands.restructure import command
from deploy.embedded_kafka import EmbeddedKafka
from deploy.job_tries import JobTries
from deploy.local_port import free_port
from deploy.restructuring import choose
from deploy.restructuring_worker import RestructuringWorker, WorkReport
from deploy.settings import load_settings
from deploy.worker_console import WorkerConsole
from model_store.mlflow_registry import MlflowRegistry
from model_store.offers import OfferStore
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.restructuring.trigger import Kind
from pipeline.user_error import UserError
from producers.schedules.split import Split
from tests.consumers.learner_world import World, learner_settings
from tests.deleted_topic import delete_topic
from tests.deploy.streams import ASKING_LEARNER, events, kafka, learn, send

SETTINGS = """
metrics: {{enabled: false}}
kafka: {{bootstrap_servers: '{servers}', connect_timeout_seconds: {connect_seconds}}}
consolidation: {{epochs: 2, specialist_epochs: 2, min_unlabelled: 100}}
expansion: {{epochs: 2, distillation_epochs: 2, head_epochs: 10}}
acceptance: {{average_margin: {margin}, growth_gain: -1, worst_class_margin: 1, class_margin: 1, min_class_samples: 1}}
worker: {{nice: 0, look_seconds: 0.05, retry_seconds: 0.2}}
registry: {{enabled: {registry}, every_records: 100000, tracking_uri: 'sqlite:///{folder}/mlflow.db'}}
"""


ASKS_FOR = {Kind.CONSOLIDATION: "null", Kind.EXPANSION: "1.0"}


class Desk:
    """A stream, its state's folder, and both commands on it."""

    def __init__(
        self,
        folder: Path,
        broker: EmbeddedKafka,
        stream: str,
        *,
        margin: float = 1,
        registry: bool = False,
        kind: Kind = Kind.CONSOLIDATION,
    ) -> None:
        self.broker, self.stream, self.state = broker, stream, folder / "state"
        self.file = folder / "settings.yaml"
        servers = broker.bootstrap_servers
        values = {"servers": servers, "margin": margin, "registry": str(registry).lower(), "folder": folder}
        settings = ASKING_LEARNER + SETTINGS.format(**values, connect_seconds=30)
        # where it is 1, each request is one for an expansion
        self.file.write_text(settings.replace("expand_below: null", f"expand_below: {ASKS_FOR[kind]}"))

    def send(self, records: int, *, seed: int = 0, unlabelled_share: float = 0.33) -> None:
        """Steps of two digits, some without labels."""
        send(self.broker, self.stream, records, schedule=Split(), seed=seed, unlabelled_share=unlabelled_share)

    def learn(self) -> None:
        learn(self.stream, self.state, self.file)

    def work(self, stream: str | None = None) -> Result:
        given = ["--stream", stream or self.stream, "--state", str(self.state), "--settings", str(self.file)]
        return CliRunner().invoke(command, [*given, "--until-idle", "0.1"], catch_exceptions=False)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return events(self.broker, self.stream, kind)


def decay(entry: SnapshotEntry) -> None:
    (entry.path / entry.manifest.files[0].name).write_bytes(b"decayed")


def lines(result: Result) -> list[dict[str, Any]]:
    """Without what depends on the machine's speed: progress, and what a client says of a slow broker."""
    told = [json.loads(line) for line in result.stderr.splitlines()]
    return [line for line in told if line["event"] not in ("progress", "log")]


@pytest.mark.kafka
def test_what_is_asked_for_is_made_offered_adopted_and_a_version(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name, registry=True)
    desk.send(900)
    desk.learn()
    (asked,) = desk.events("restructuring_requested")
    assert len(asked["new_classes"]) >= 2
    assert asked["kind"] == "consolidation"
    done = desk.work()
    assert done.exit_code == 0
    told = lines(done)
    assert [line["event"] for line in told] == ["started", "requested", "offered", "stopped"]
    assert [line["kind"] for line in told[1:3]] == ["consolidation", "consolidation"]
    assert told[-1]["offered"] == 1
    again = desk.work()
    assert [line["event"] for line in lines(again)] == ["started", "stopped"], "it is answered"
    desk.send(60, seed=1)
    desk.learn()
    (adopted,) = desk.events("adopted")
    assert adopted["reason"] == "new_classes"
    assert adopted["requested_at"] == asked["records_consumed"] == adopted["parent_records"]
    assert 0 <= adopted["average_accuracy_after"] <= 1
    versions = MlflowRegistry(f"sqlite:///{tmp_path / 'mlflow.db'}").versions(stream_name)
    assert "consolidation" in [version.trigger for version in versions]


@pytest.mark.kafka
def test_an_expansion_that_is_asked_for_is_made_offered_and_adopted(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name, kind=Kind.EXPANSION)
    desk.send(900)
    desk.learn()
    (asked,) = desk.events("restructuring_requested")
    assert asked["kind"] == "expansion"
    told = lines(desk.work())
    assert [line["event"] for line in told] == ["started", "requested", "offered", "stopped"]
    assert [line["kind"] for line in told[1:3]] == ["expansion", "expansion"]
    assert [line["event"] for line in lines(desk.work())] == ["started", "stopped"], "it is answered"
    desk.send(60, seed=1)
    desk.learn()
    (adopted,) = desk.events("adopted")
    assert adopted["kind"] == "expansion"
    assert adopted["requested_at"] == asked["records_consumed"] == adopted["parent_records"]
    assert (adopted["sub_modules_before"], adopted["sub_modules_after"]) == (1, 2)
    assert adopted["parameters_after"] > adopted["parameters_before"]


@pytest.mark.kafka
def test_an_expansion_that_is_refused_is_told_as_such(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name, kind=Kind.EXPANSION)
    desk.file.write_text(desk.file.read_text().replace("expansion: {epochs: 2", "expansion: {learning_rate: 1.0e+30"))
    desk.send(900)
    desk.learn()
    assert "lower expansion.learning_rate" in lines(desk.work())[-2]["why"]
    assert [path.name for path in (desk.state / "jobs").iterdir()] == ["lock"]
    desk.learn()
    (told,) = desk.events("restructuring_refused")
    assert told["kind"] == "expansion"
    assert requested_job(SnapshotStore(desk.state / "snapshots").entries()) is None


@pytest.mark.kafka
def test_an_expansion_goes_on_without_a_topic_of_unlabelled_records(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name, kind=Kind.EXPANSION)
    desk.send(900)
    desk.learn()
    delete_topic(kafka(kafka_broker), topics.unlabelled(stream_name))
    offered = lines(desk.work())[-2]
    assert (offered["event"], offered["unlabelled_rows"]) == ("offered", 0)


@pytest.mark.kafka
def test_the_learner_hears_why_nothing_comes_of_it(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name)
    desk.send(900, unlabelled_share=0.05)
    desk.learn()
    refused = lines(desk.work())[-2]
    assert refused["event"] == "refused"
    assert "unlabelled rows are too few for a good student, at least 100 are wanted" in refused["why"]
    desk.learn()
    (told,) = desk.events("restructuring_refused")
    assert told["why"] == refused["why"]
    assert told["reason"] == "new_classes"
    assert requested_job(SnapshotStore(desk.state / "snapshots").entries()) is None


@pytest.mark.kafka
def test_a_topic_without_unlabelled_records_is_a_refusal(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name)
    desk.send(900)
    desk.learn()
    delete_topic(kafka(kafka_broker), topics.unlabelled(stream_name))
    refused = lines(desk.work())[-2]
    assert refused["event"] == "refused"
    assert f"topic {stream_name}.unlabelled does not exist" in refused["why"]


@pytest.mark.kafka
def test_what_is_worse_is_not_offered_and_the_learner_hears_of_it(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name, margin=0)
    text = desk.file.read_text().replace("epochs: 2,", "epochs: 1, learning_rate: 1.0e-9, initialisation: fresh,", 1)
    desk.file.write_text(text)
    desk.send(900)
    desk.learn()
    refused = lines(desk.work())[-2]
    assert refused["event"] == "refused"
    assert "average accuracy went from" in refused["reasons"][0]
    desk.learn()
    (told,) = desk.events("restructuring_refused")
    assert told["why"].startswith("worse than what there is: average accuracy went from")
    assert told["average_accuracy_after"] < told["average_accuracy_before"]


@pytest.mark.kafka
def test_broken_snapshots_give_way_to_the_next_ones(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name)
    desk.send(900)
    desk.learn()
    store = SnapshotStore(desk.state / "snapshots")
    job = requested_job(store.entries())
    assert job is not None
    assert job.base is not None
    decay(job.parent)
    offered = lines(desk.work())[-2]
    assert offered["event"] == "offered"
    assert offered["job"] != job_name(job.kind, job.parent)
    OfferStore(desk.state / "offers").clear()
    for entry in store.entries():
        if entry.number < job.parent.number:
            decay(entry)
    refused = lines(desk.work())[-2]
    assert refused["event"] == "refused"
    assert "the snapshot from before the new classes is not kept any more, or broken" in refused["why"]
    (refusal,) = OfferStore(desk.state / "offers").answers()
    assert refusal.facts["base_is_lost"] is True


@pytest.mark.kafka
def test_what_was_begun_of_a_refused_job_goes_and_by_hand_another_is_chosen(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name)
    desk.file.write_text(desk.file.read_text().replace("epochs: 2,", "epochs: 2, learning_rate: 1.0e+30,", 1))
    desk.send(900)
    desk.learn()
    refused = lines(desk.work())[-2]
    assert "weights are not finite: lower learning_rate" in refused["why"]
    assert [path.name for path in (desk.state / "jobs").iterdir()] == ["lock"]
    desk.learn()
    chosen = choose(desk.state, Kind.CONSOLIDATION, stream=stream_name)
    assert chosen.job != refused["job"]


@pytest.mark.kafka
def test_a_job_that_no_worker_survives_is_refused(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name)
    desk.send(900)
    desk.learn()

    def breaks_down(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("deploy.restructuring_worker.restructure", breaks_down)
        for _ in range(10):
            with pytest.raises(MemoryError):
                desk.work()
    refused = lines(desk.work())[-2]
    assert refused["event"] == "refused"
    assert refused["why"].startswith("10 workers ended in the midst of it")


@pytest.mark.kafka
def test_another_streams_folder_is_named(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> None:
    desk = Desk(tmp_path, kafka_broker, stream_name)
    desk.send(60)
    desk.learn()
    with pytest.raises(UserError, match=f"holds the state of stream '{stream_name}', not 'another'"):
        desk.work("another")


def asking_state(folder: Path) -> None:
    """A state that waits for an answer, made without brokers."""
    from tests.consumers.digit_records import digit_stream

    settings = learner_settings(
        restructuring={"new_classes": 2, "settle_records": 40, "rest_records": 60, "expand_below": None}
    )
    world = World(folder, settings=settings)
    world.write(digit_stream(90, clean=True))
    world.learn(max_records=170)
    assert requested_job(world.store.entries()) is not None


def test_a_job_by_hand_begins_where_the_one_that_is_asked_for_would(tmp_path: Path) -> None:
    """Before all classes that are new, not the two newest alone; one of the other kind answers no request."""
    from tests.consumers.digit_records import digit_stream

    settings = learner_settings(
        restructuring={"new_classes": 4, "settle_records": 40, "rest_records": 60, "expand_below": 1.0}
    )
    world = World(tmp_path, settings=settings)
    world.write(digit_stream(90, clean=True))
    world.learn(max_records=140)
    world.learn()
    asked = requested_job(world.store.entries())
    assert asked is not None
    assert asked.kind is Kind.EXPANSION
    chosen = choose(tmp_path, Kind.EXPANSION, stream="digits")
    assert (chosen.base, len(chosen.new_classes)) == (asked.base, 4)
    assert len(choose(tmp_path, Kind.CONSOLIDATION, stream="digits").new_classes) == 2


def worker_without_brokers(folder: Path, observer: WorkerObserver | None = None) -> tuple[RestructuringWorker, Path]:
    file = folder / "settings.yaml"
    servers = f"127.0.0.1:{free_port()}"
    file.write_text(
        ASKING_LEARNER + SETTINGS.format(servers=servers, margin=1, registry="false", folder=folder, connect_seconds=2)
    )
    settings = load_settings(file)
    state = folder / "state"
    console = WorkerConsole(as_json=True)
    worker = RestructuringWorker(stream="digits", state=state, settings=settings, console=console, observer=observer)
    return worker, state


def test_without_a_state_it_waits(tmp_path: Path) -> None:
    worker, _ = worker_without_brokers(tmp_path)
    report = worker.run(threading.Event(), until_idle_seconds=0.1)
    assert report == WorkReport(offered=0, refused=0, stopped_by="idle")


def test_brokers_that_are_away_are_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = WorkerMetrics(stream="digits", stale_after_seconds=60.0)
    worker, state = worker_without_brokers(tmp_path, metrics)
    asking_state(state)
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    said, deadline = "", time.monotonic() + 120
    while '"waiting"' not in said and time.monotonic() < deadline:
        said += capsys.readouterr().err
        time.sleep(0.1)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    waiting = [json.loads(line) for line in said.splitlines() if '"waiting"' in line]
    assert len(waiting) == 1, "said once"
    assert "no broker is reachable at 127.0.0.1" in waiting[0]["why"]
    assert (counted(metrics, "failed") or 0) >= 1
    assert metrics.registry.get_sample_value("palimpsest_job_running", {"kind": "consolidation"}) == 0
    assert OfferStore(state / "offers").answers() == []


def counted(metrics: WorkerMetrics, outcome: str) -> float | None:
    labels = {"kind": "consolidation", "outcome": outcome}
    return metrics.registry.get_sample_value("palimpsest_jobs_total", labels)


def test_a_base_that_is_gone_is_a_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = WorkerMetrics(stream="digits", stale_after_seconds=60.0)
    worker, state = worker_without_brokers(tmp_path, metrics)
    asking_state(state)
    store = SnapshotStore(state / "snapshots")
    job = requested_job(store.entries())
    assert job is not None
    for entry in store.entries():
        if entry.number < job.parent.number:
            store.remove(entry.path)
    assert worker.run(threading.Event(), until_idle_seconds=0.1).refused == 1
    (refusal,) = OfferStore(state / "offers").answers()
    assert refusal.facts["base_is_lost"] is True
    assert "is not kept any more" in refusal.facts["why"]
    assert "is not kept any more" in capsys.readouterr().err
    assert (counted(metrics, "refused"), counted(metrics, "failed")) == (1, 0)


def test_a_job_that_ended_its_worker_is_counted_by_the_next_one(tmp_path: Path) -> None:
    metrics = WorkerMetrics(stream="digits", stale_after_seconds=60.0)
    worker, state = worker_without_brokers(tmp_path, metrics)
    asking_state(state)
    job = requested_job(SnapshotStore(state / "snapshots").entries())
    assert job is not None
    tries = JobTries(state / "jobs")
    for _ in range(11):  # so that it is refused at once, without brokers
        tries.begin(job_name(job.kind, job.parent))
    assert worker.run(threading.Event(), until_idle_seconds=0.1).refused == 1
    assert (counted(metrics, "failed"), counted(metrics, "refused")) == (11, 1)
