"""The main job, end to end: a drifting stream through real Kafka into a model that remembers.

1. Start the embedded broker, in the demo's own folder; or take the cluster that the settings name.
2. Produce the first part of the data set, which is five blurred steps of two classes, a share of it without labels.
3. Learn it, with the settings that `palimpsest learn` has by itself; versions go to MLflow. A worker beside the
   learner consolidates or expands the network as it is asked to, and the learner adopts what comes of it. Then the rest
   of the stream comes.
4. Learn the same topic again on another branch, with no retention at all: what forgetting looks like.
5. Print both side by side.
6. Promote the newest version, if it is no worse than the first one, and answer the records without a label with it.
7. Write report.html, the learner's page as a file, and summary.json.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from consumers import topics
from consumers.kafka_settings import KafkaSettings
from consumers.observers import Observer
from consumers.topics import MAIN_BRANCH
from deploy.console import ConsoleObserver
from deploy.demo_events import told_restructurings
from deploy.demo_serving import serve
from deploy.demo_sizes import NetworkSize, NetworkSizes
from deploy.demo_stream import DemoStream
from deploy.demo_worker import DemoWorker, demo_worker
from deploy.embedded_kafka import EmbeddedKafka
from deploy.kafka_jars import KAFKA_VERSION
from deploy.learning import open_learner
from deploy.reporting import write_report
from deploy.settings import Settings
from deploy.settled_objects import settled
from model_store.mlflow_registry import MlflowRegistry
from model_store.registry import RegisteredVersion
from pipeline.evaluation.forgetting import EvaluationReport
from pipeline.record import Partition
from pipeline.restructuring.trigger import Kind, RestructuringSettings
from pipeline.settings import LearnerSettings
from pipeline.stream_learner import StepReport, StreamLearner
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions
from producers.datasets import open_dataset
from producers.sample_stream import SampleStream
from producers.schedules.blurred import Blurred

FINETUNE_BRANCH = "finetune"
# Says that the rest is a demo's: what it made before it makes anew, and nothing else in its folder is touched.
_MARK = ".palimpsest-demo"
_OWN = (
    "broker",
    "state",
    "models",
    "finetune",
    "mlflow.db",
    "mlartifacts",
    "mlruns",
    "metrics.prom",
    "summary.json",
    "report.html",
    "worker.log",
)
# So many new classes, of the two of each step, ask for a job: those of a part of the stream (demo_stream.py).
_NEW_CLASSES = 4
# The versions are shown and promoted: on a machine that is busy, MLflow's tables alone may take minutes.
_DRAIN_SECONDS = 300.0
# Digits are easy: the first four new classes are learnt to 98 or 99 %, the last four, harder to tell apart, to
# 85 to 93 %, and for these the network is to grow.
_EXPAND_BELOW = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What one learner of the demo came to."""

    evaluation: EvaluationReport
    trained: int
    held_out: int
    dead_letters: int
    seconds: float


def run_demo(
    *,
    dataset: str,
    data_root: Path | None,
    out: Path,
    records: int,
    seed: int,
    settings: Settings,
    settings_file: Path | None = None,
) -> dict[str, Any]:
    """All seven steps; returns what summary.json holds. `settings_file`: where `settings` came from, for the worker."""
    began = time.monotonic()
    stream = f"demo-{''.join(c if c.isalnum() and c.isascii() else '-' for c in dataset)}"
    options = DatasetOptions() if data_root is None else DatasetOptions(data_root=data_root)
    sample_stream = SampleStream(
        open_dataset(dataset, options), Blurred(), seed=seed, records=records, unlabelled_share=0.15
    )
    steps = int(sample_stream.step_N.max()) + 1
    _clean(out)
    # 1.
    with _kafka(settings.kafka, out) as (kafka, description):
        _say(f"{description} is up at {kafka.bootstrap_servers}")
        is_embedded = settings.kafka.bootstrap_servers is None
        if not is_embedded:
            stream = f"{stream}-{uuid.uuid4().hex[:8]}"  # what an earlier demo sent there is not to be learnt again
        tracking_uri = f"sqlite:///{(out / 'mlflow.db').resolve()}"
        registry = settings.registry.model_copy(
            update={
                "enabled": True,
                "tracking_uri": tracking_uri,
                "drain_seconds": max(settings.registry.drain_seconds, _DRAIN_SECONDS),
                # the learner with a worker is ended as by a signal
                "drain_seconds_at_signal": max(settings.registry.drain_seconds_at_signal, _DRAIN_SECONDS),
            }
        )
        metrics = settings.metrics.model_copy(update={"enabled": True, "port": 0})
        settings = settings.model_copy(update={"kafka": kafka, "registry": registry, "metrics": metrics})
        # 2.
        parts = DemoStream(sample_stream, name=stream, kafka=kafka)
        parts.begin_next()
        parts.wait()
        _say(
            f"{len(sample_stream):,} records in {steps} blurred steps of two classes; of the first ones "
            f"{parts.labelled:,} are in {topics.samples(stream)}, {parts.unlabelled:,} in {topics.unlabelled(stream)}"
        )
        # 3.
        retention = " + ".join(settings.learner.retention) or "no retention"
        _say(f"\nlearning with {retention}, one pass, no task ids:")
        sizes = NetworkSizes()
        learnt = _learn_with_a_worker(stream, parts, out, _asking(settings, records), settings_file, sizes)
        parts.wait()
        # 4.
        _say("\nlearning the same topic again with no retention at all:")
        values = settings.learner.model_dump(exclude={"retention"})
        never = {"new_classes": None}
        learner = LearnerSettings.model_validate({**values, "retention": {}, "restructuring": never})
        plain = settings.model_copy(update={"learner": learner})
        finetune = _learn(stream, out / "finetune", plain, FINETUNE_BRANCH)
        restructurings = told_restructurings(kafka, stream)
        # 5.
        _print_table(learnt, finetune, retention)
        _print_restructurings(restructurings, stream)
        _print_sizes(sizes.over_time)
        # 6.
        mlflow = MlflowRegistry(tracking_uri)
        registered = mlflow.versions(stream)
        if not registered:
            log = out / "state" / "registrations" / "registrar.log"
            raise UserError(
                f"MLflow took no version, so that none can be promoted: {log} says why; then run the demo again"
            )
        served = serve(stream, mlflow, registered, out=out, settings=settings)
        versions = mlflow.versions(stream)
        # 7.
        page = write_report(out / "state", out / "report.html", settings=settings, baseline=out / "finetune")
        if page.events_problem is not None:
            _say(f"  warning: the report lacks events: {page.events_problem}")
    summary = {
        "broker": description,
        "seconds": round(time.monotonic() - began, 1),
        "records": {
            "produced": parts.labelled + parts.unlabelled,
            "trained": learnt.trained,
            "held_out": learnt.held_out,
            "unlabelled": parts.unlabelled,
            "dead_letters": learnt.dead_letters,
        },
        "accuracy": learnt.evaluation.average_accuracy,
        "average_forgetting": learnt.evaluation.average_forgetting,
        "classes": {
            entry.name: {"accuracy": entry.accuracy, "best": entry.best, "forgetting": entry.forgetting}
            for entry in learnt.evaluation.classes
        },
        "finetune": {
            "accuracy": finetune.evaluation.average_accuracy,
            "average_forgetting": finetune.evaluation.average_forgetting,
        },
        "restructurings": restructurings,
        "network": sizes.as_json,
        "served": served.as_json,
        "versions": [
            {"version": version.version, "trigger": version.trigger, "offsets": _offsets(version.offsets)}
            for version in versions
        ],
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _print_versions(versions, stream)
    cluster = None if is_embedded else kafka.bootstrap_servers
    _print_where(out, stream, tracking_uri, cluster, evaluated_at=page.evaluated_at)
    return summary


class _DeadLetterCount(Observer):
    def __init__(self) -> None:
        self.dead_letters = 0

    def stepped(self, learner: StreamLearner, report: StepReport) -> None:
        self.dead_letters += len(report.batch.dead)


def _asking(settings: Settings, records: int) -> Settings:
    """A demo is short for the defaults: what a person has set otherwise stays."""
    if settings.learner.restructuring != RestructuringSettings():
        return settings
    asks = {
        "new_classes": _NEW_CLASSES,
        "settle_records": records // 12,
        "rest_records": records // 4,
        "expand_below": _EXPAND_BELOW,
    }
    learner = settings.learner.model_copy(update={"restructuring": RestructuringSettings.model_validate(asks)})
    return settings.model_copy(update={"learner": learner})


def _learn_with_a_worker(
    stream: str, parts: DemoStream, out: Path, settings: Settings, settings_file: Path | None, sizes: NetworkSizes
) -> Learnt:
    servers = settings.kafka.bootstrap_servers
    assert servers is not None, "the demo's own broker, or a cluster"
    with demo_worker(
        stream=stream,
        parts=parts,
        state=out / "state",
        settings_file=settings_file,
        bootstrap_servers=servers,
        log_file=out / "worker.log",
    ) as worker:
        learnt = _learn(
            stream,
            out / "state",
            settings,
            MAIN_BRANCH,
            worker,
            observers=[worker, sizes],
            scrape_to=out / "metrics.prom",
        )
        if worker.problem is not None:
            _say(f"  warning: {worker.problem}")
    return learnt


def _learn(
    stream: str,
    state: Path,
    settings: Settings,
    branch: str,
    worker: DemoWorker | None = None,
    observers: Sequence[Observer] = (),
    scrape_to: Path | None = None,
) -> Learnt:
    dead = _DeadLetterCount()
    console = ConsoleObserver(sys.stdout, as_json=False)
    with open_learner(
        stream=stream,
        state=state,
        settings=settings,
        branch=branch,
        observers=[console, dead, *observers],
        registered=console.registered,
    ) as opened:
        if scrape_to is not None:
            console.metrics_shown(f"{opened.metrics_url}")
        with settled():
            if worker is None:
                report = opened.process.run(stop=threading.Event(), until_idle_seconds=2.0)
            else:
                report = opened.process.run(stop=worker.stop)
        learner = opened.process.learner
        evaluation = learner.evaluate_unrecorded()
        assert evaluation is not None, "the stream was learnt, so its hold-outs can be evaluated"
        if scrape_to is not None:
            # Not through a proxy that the environment may name: it cannot see this machine's 127.0.0.1.
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(f"{opened.metrics_url}/metrics", timeout=10) as answer:
                scrape_to.write_bytes(answer.read())
    _say(f"  {report.records:,} records in {report.busy_seconds:.1f} s ({report.records / report.busy_seconds:,.0f}/s)")
    return Learnt(
        evaluation=evaluation,
        trained=learner.records_trained,
        held_out=learner.records_held_out,
        dead_letters=dead.dead_letters,
        seconds=report.seconds,
    )


def _print_table(learnt: Learnt, finetune: Learnt, retention: str) -> None:
    plain = {entry.name: entry for entry in finetune.evaluation.classes}
    _say(f"\n{'':>12}  {'held':>6}  {retention:^28}  {'no retention':^28}")
    _say(f"{'class':>12}  {'out':>6}  {'best':>8}  {'last':>8}  {'forgot':>8}  {'best':>8}  {'last':>8}  {'forgot':>8}")
    for entry in learnt.evaluation.classes:
        other = plain.get(entry.name)
        left = f"{entry.best:>8.1%}  {entry.accuracy:>8.1%}  {entry.forgetting:>8.1%}"
        right = "" if other is None else f"{other.best:>8.1%}  {other.accuracy:>8.1%}  {other.forgetting:>8.1%}"
        _say(f"{entry.name:>12}  {entry.n:>6}  {left}  {right}")
    _say(
        f"{'average':>12}  {'':>6}  {'':>8}  {_percent(learnt.evaluation.average_accuracy)}  "
        f"{_percent(learnt.evaluation.average_forgetting)}  {'':>8}  {_percent(finetune.evaluation.average_accuracy)}  "
        f"{_percent(finetune.evaluation.average_forgetting)}"
    )
    _say("(accuracy on records held out by a hash of what they show: never trained on)")
    few = [entry.name for entry in learnt.evaluation.classes if not entry.in_averages]
    if few:
        _say(f"(too few are held out of {', '.join(few)} for the averages)")


def _print_restructurings(restructurings: Sequence[Mapping[str, Any]], stream: str) -> None:
    _say(f"\nrestructurings, as {topics.events(stream)} tells of them:")
    for told in restructurings:
        _say(f"  {told['job']} was {told['outcome']}")
        if told["new_classes"] and told["unlabelled_rows"] is not None:
            classes, rows = ", ".join(told["new_classes"]), told["unlabelled_rows"]
            what = f"old classes and new ones ({classes}) into one network"
            if told["kind"] == Kind.EXPANSION:
                what = f"sub-module {told['sub_modules_after']} of the network, for the new classes ({classes})"
            _say(f"    {what}, on {rows:,} unlabelled records")
        before, after = told["average_accuracy_before"], told["average_accuracy_after"]
        if before is not None and after is not None:
            _say(f"    accuracy {before:.1%} before, {after:.1%} after")
        if told["records_to_relearn"] is not None:
            _say(f"    {told['records_to_relearn']:,} records that came meanwhile were learnt once more")
        if told["why"] is not None:
            _say(f"    {told['why']}")
    if not restructurings:
        _say("  none was asked for")


def _print_sizes(over_time: Sequence[NetworkSize]) -> None:
    _say("\nthe network over time:")
    _say(f"  {'from record':>12}  {'sub-modules':>11}  {'parameters':>10}")
    for size in over_time:
        _say(f"  {size.records:>12,}  {size.sub_modules:>11}  {size.parameters:>10,}  {size.after}")


def _print_versions(versions: Sequence[RegisteredVersion], stream: str) -> None:
    _say(f"\nversions of model {stream!r} in MLflow:")
    for version in versions:
        aliases = f"  @{', @'.join(sorted(version.aliases))}" if version.aliases else ""
        offsets = ", ".join(f"{p} up to {offset:,}" for p, offset in (version.offsets or {}).items())
        _say(f"  {version.version}  {version.trigger:<13} {offsets}{aliases}")


def _print_where(out: Path, stream: str, tracking_uri: str, cluster: str | None, *, evaluated_at: int | None) -> None:
    palimpsest = _program("palimpsest")
    _say(
        f"""
where to look next:
  {out / "summary.json"}   the figures above
  {out / "worker.log"}   what the worker said
  {out / "metrics.prom"}   the metrics page as Prometheus would have scraped it at the end
  {palimpsest} snapshots --state {out / "state"}
  {_program("mlflow")} ui --backend-store-uri {tracking_uri}"""
    )
    if cluster is None:
        _say(f"  {palimpsest} broker start --data-dir {out / 'broker'}   the topics are still there, for:")
        _say(f"  {palimpsest} r-matrix --stream {stream}")
    else:
        _say(f"  {palimpsest} r-matrix --stream {stream} --bootstrap-servers {cluster}")
    # The table's figures are of the stop itself, which the learner's own history does not hear of.
    newest = "" if evaluated_at is None else f", up to the learner's own last evaluation after {evaluated_at:,} records"
    _say(f"\nthe picture of it, for a browser{newest}:\n  {out / 'report.html'}")


def _program(name: str) -> str:
    """How it is called from here: `make demo` puts it into a virtual environment that the shell may know nothing of."""
    if shutil.which(name) is not None:
        return name
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _percent(share: float | None) -> str:
    return f"{'-':>8}" if share is None else f"{share:>8.1%}"


def _offsets(offsets: Mapping[Partition, int] | None) -> dict[str, int]:
    return {str(partition): offset for partition, offset in (offsets or {}).items()}


@contextmanager
def _kafka(settings: KafkaSettings, out: Path) -> Iterator[tuple[KafkaSettings, str]]:
    """The settings of the brokers, and what they are called in the summary."""
    if settings.bootstrap_servers is not None:
        yield settings, f"the Kafka cluster at {settings.bootstrap_servers}"
        return
    with EmbeddedKafka(out / "broker") as broker:
        yield KafkaSettings(bootstrap_servers=broker.bootstrap_servers), f"Apache Kafka {KAFKA_VERSION}, embedded"


def _clean(out: Path) -> None:
    """An empty folder for a new demo. Raises `UserError` where it holds things of these names that no demo made."""
    mark = out / _MARK
    strange = [name for name in _OWN if (out / name).exists()]
    if strange and not mark.exists():
        raise UserError(f"{out} holds {', '.join(strange)}, and not from a demo; give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; give another --out") from None
    EmbeddedKafka(out / "broker").stop()  # of a demo that was killed
    for name in _OWN:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _say(text: str) -> None:
    click.echo(text)
