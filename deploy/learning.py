"""Puts a learner's process together from its parts: what `learn`, the demo, the benchmarks and the R-matrix run."""

from __future__ import annotations

import os
import platform
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from consumers import kafka_connection, topics
from consumers.branch_name import check_branch_name
from consumers.device_memory_metrics import DeviceMemory
from consumers.http_server import Route
from consumers.kafka_commit_log import KafkaCommitLog
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_reports import kafka_reports
from consumers.learner_process import LearnerProcess
from consumers.learner_status import LearnerStatus
from consumers.metrics import LearnerMetrics
from consumers.metrics_server import MetricsServer
from consumers.observers import Observer, Observers
from consumers.state_lock import shared_lock
from consumers.status_answer import StatusAnswer
from consumers.topics import MAIN_BRANCH
from consumers.version_submission import VersionSubmission
from deploy.local_port import on_port
from deploy.page_of_learner import page_of_learner
from deploy.process_facts import process_facts
from deploy.settings import Settings
from deploy.state_folder import make_state_folder
from model_store.offers import OfferStore
from model_store.registrar_process import RegistrarProcess
from model_store.registration_queue import RegistrationQueue
from model_store.snapshot_store import SnapshotStore
from pipeline.device import choose_device, configure_torch
from pipeline.state import Json
from pipeline.stream_learner import StreamLearner

_USUAL_METRICS_PORT = 9095


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLearner:
    """A learner that has started: its process, and where its metrics are shown."""

    process: LearnerProcess
    status: Callable[[], StatusAnswer]  # as it is at this moment; any thread may ask
    metrics_url: str | None
    tracking_uri: str | None
    resumed: bool


@contextmanager
def open_learner(
    *,
    stream: str,
    state: Path,
    settings: Settings,
    branch: str = MAIN_BRANCH,
    observers: Sequence[Observer] = (),
    registered: Callable[[str, str], object] = lambda _version, _run_id: None,
    stop: threading.Event | None = None,
    accept_gap: bool = False,
) -> Iterator[OpenLearner]:
    """Connect, claim the branch, load the newest snapshot, seek. Everything is closed at the end.

    `registered(version, run_id)` hears of versions in MLflow; `stop` ends a wait for brokers; `accept_gap` goes on
    where the log has lost what comes next. Raises `UserError` for what the user can put right (no broker, no topic,
    another stream's folder), else as `LearnerProcess.start`.
    """
    topics.check_stream_name(stream)
    check_branch_name(branch)
    make_state_folder(state)
    configure_torch(settings.learner)
    with ExitStack() as stack:
        with kafka_connection.hearing(stop):  # later the last commit of all comes after the stop
            opened = _opened(stack, stream, state, settings, branch, observers, registered, stop, accept_gap)
        yield opened


def _opened(
    stack: ExitStack,
    stream: str,
    state: Path,
    settings: Settings,
    branch: str,
    observers: Sequence[Observer],
    registered: Callable[[str, str], object],
    stop: threading.Event | None,
    accept_gap: bool,
) -> OpenLearner:
    """What has to be closed goes onto the stack."""
    stack.enter_context(shared_lock(state, stop=stop))
    store = SnapshotStore(state / "snapshots")
    samples = topics.check_samples_topic(settings.kafka, stream)
    speaks = branch == MAIN_BRANCH
    if speaks:
        topics.ensure_report_topics(settings.kafka, stream)
        topics.check_may_report(settings.kafka, stream)
    source = stack.enter_context(KafkaRecordSource(settings.kafka, samples.partitions, samples.topic_id))
    commit_log = stack.enter_context(KafkaCommitLog(settings.kafka, stream, branch, samples.partitions))
    metrics = LearnerMetrics(settings.metrics, stream=stream, branch=branch, snapshots=settings.snapshots)
    device = choose_device(settings.learner.device)
    if device.type == "cuda":
        metrics.registry.register(DeviceMemory(device))
    facts = environment(settings)
    status = LearnerStatus(settings.snapshots, stream=stream, branch=branch, device=str(facts["device"]))
    heard: list[Observer] = [metrics, status, *observers]
    server = None
    if settings.metrics.enabled:
        page = stack.enter_context(page_of_learner(settings, stream=stream, branch=branch))
        heard.append(page)
        routes = {**page.routes, **status.routes}
        server = stack.enter_context(_metrics_server(settings, metrics, routes))
    observer = Observers(heard)

    def note_version(version: str, run_id: str) -> None:
        metrics.registered(version, run_id)
        status.registered(version, run_id)
        registered(version, run_id)

    learner = StreamLearner(settings.learner)
    state_id = _state_id(store)
    tracking_uri = None
    submission = None
    if speaks and settings.registry.enabled:
        tracking_uri = chosen_tracking_uri(settings, state)
        queue = RegistrationQueue(state / "registrations")
        metrics.watch_registrations(lambda: len(queue.pending_numbers()))
        status.watch_registrations(lambda: len(queue.pending_numbers()))
        submission = stack.enter_context(
            VersionSubmission(
                queue,
                RegistrarProcess(
                    queue,
                    tracking_uri,
                    drain_seconds=settings.registry.drain_seconds,
                    log_file=queue.folder / "registrar.log",
                ),
                stream=stream,
                state_id=state_id,
                registered=note_version,
                warned=observer.warned,
            )
        )
    process = LearnerProcess(
        learner=learner,
        source=source,
        commit_log=commit_log,
        store=store,
        facts=process_facts(samples, stream=stream, branch=branch, state_id=state_id, environment=facts),
        stream_settings=settings.stream,
        snapshot_settings=settings.snapshots,
        registry_settings=settings.registry,
        observer=observer,
        versions=submission,
        reports=kafka_reports(settings.kafka, stream=stream, branch=branch) if speaks else None,
        accept_gap=accept_gap,
        offers=OfferStore(state / "offers"),
    )
    resumed = process.start(stop)
    if process.resumed_from is not None:
        status.resumed_from(process.resumed_from)
    return OpenLearner(
        process=process,
        status=status.answer,
        metrics_url=server.url if server else None,
        tracking_uri=tracking_uri,
        resumed=resumed,
    )


def _metrics_server(
    settings: Settings, metrics: LearnerMetrics, routes: Mapping[str, Mapping[str, Route]]
) -> MetricsServer:
    def on(port: int) -> MetricsServer:
        return MetricsServer(
            registry=metrics.registry,
            host=settings.metrics.host,
            port=port,
            last_turn=lambda: metrics.last_turn,
            ready=lambda: metrics.ready,
            stale_after_seconds=settings.metrics.stale_after_seconds,
            routes=routes,
        )

    return on_port(settings.metrics.port, _USUAL_METRICS_PORT, on)


def chosen_tracking_uri(settings: Settings, state: Path | None) -> str:
    """The setting, else MLflow's own variable, else a SQLite file beside the state's folder, for all states there.

    `state` None: as if it were in `runs`, where the states of all our examples are.
    """
    folder = Path("runs").resolve() if state is None else state.resolve().parent
    return (
        settings.registry.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    )


def environment(settings: Settings) -> dict[str, Json]:
    """What bit-for-bit sameness depends on besides settings and log."""
    device = choose_device(settings.learner.device)
    return {
        "palimpsest": version("palimpsest"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "machine": platform.machine(),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "precision": settings.learner.precision,
        "deterministic": settings.learner.deterministic,
    }


def _state_id(store: SnapshotStore) -> str:
    """One id for the life of a state: it finds the state's run in MLflow again after a restart."""
    for entry in reversed(store.entries()):
        stored = entry.facts.get("state_id")
        if isinstance(stored, str):
            return stored
    return uuid.uuid4().hex
