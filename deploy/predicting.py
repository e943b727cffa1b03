"""Puts a predictor together from its parts: what `palimpsest predict`, the demo and the benchmark run."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from consumers import kafka_connection, topics
from consumers.kafka_request_log import KafkaRequestLog
from consumers.metrics_server import MetricsServer
from consumers.model_slot import ModelSlot
from consumers.model_watch import ModelWatch
from consumers.predict_route import PredictRoute
from consumers.predictor import Predictor
from consumers.predictor_metrics import PredictorMetrics
from consumers.predictor_settings import PredictorSettings
from consumers.promotion_watch import watch_promotions
from consumers.shadow_metrics import ShadowMetrics
from deploy.learning import chosen_tracking_uri
from deploy.local_port import on_port
from deploy.predictor_console import PredictorConsole
from deploy.settings import Settings
from deploy.shadow import shadow_reader
from model_store.child_process import ChildProcess
from model_store.served_versions import ServedVersions
from model_store.tracking_uri import check_tracking_uri
from pipeline.device import choose_device
from pipeline.evaluation.shadow_scores import Role

_USUAL_PORT = 9096
_FETCHER_SECONDS = 5.0  # for the fetcher to end a download that is under way
_THREAD_SECONDS = 5.0
_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPredictor:
    """A predictor that has joined its group, and where it listens."""

    predictor: Predictor
    slot: ModelSlot
    url: str | None


@contextmanager
def open_predictor(
    *,
    stream: str,
    role: Role,
    source: str,
    output: str,
    models: Path,
    instance: str,
    settings: Settings,
    console: PredictorConsole,
    stop: threading.Event,
) -> Iterator[OpenPredictor]:
    """Connect, join, and follow the alias. Everything is closed at the end.

    `source`, `output`: topics; that of the answers is made where it is missing. Raises `UserError` for what the user
    can put right, else as `KafkaRequestLog.start`.

    1. What a person may have mistyped, before anything is started.
    2. The versions: what lies here is served at once, while a process of its own asks MLflow.
    3. HTTP.
    4. The group.
    """
    # 1.
    topics.check_stream_name(stream)
    check_tracking_uri(tracking_uri := chosen_tracking_uri(settings, models))
    device = choose_device(settings.predictor.device)
    if settings.predictor.threads is not None:
        torch.set_num_threads(settings.predictor.threads)
    with ExitStack() as stack:
        with kafka_connection.hearing(stop):
            topics.ensure_answers_topic(settings.kafka, output, requests=source)
        log = KafkaRequestLog(
            settings.kafka,
            stream=stream,
            role=role,
            instance=instance,
            topic=source,
            begins_at_end=settings.predictor.begins == "end",
        )
        # 2.
        versions = ServedVersions(models, stream)
        versions.prepare()
        metrics = PredictorMetrics(
            stream=stream,
            role=role,
            instance=instance,
            looked=versions.looked(role),
            stale_after_seconds=settings.predictor.stale_after_seconds,
        )
        slot = ModelSlot()
        arguments = ["--models", str(models.absolute()), "--stream", stream, "--role", role]
        arguments += ["--tracking-uri", tracking_uri, "--look-seconds", str(settings.predictor.look_seconds)]
        fetcher = ChildProcess("model_store.version_fetcher", arguments, log_file=models / f"{role}-fetcher.log")
        stack.callback(fetcher.close, _FETCHER_SECONDS)
        over = threading.Event()

        def start(name: str, run: Callable[[], None]) -> None:
            stack.callback(_thread(name, run, over=over, warned=console.waits))

        def follow_alias() -> None:
            # A new one each time: what one that failed had begun is not taken for done.
            ModelWatch(versions, role, slot, fetcher, device=device, observers=[metrics, console]).run(over)

        start("model-watch", follow_alias)
        start("promotions", lambda: watch_promotions(settings.kafka, stream, fetcher.nudge, over))
        if role == "challenger":
            shown = ShadowMetrics(settings.metrics.max_class_labels)
            metrics.registry.register(shown)
            shadow_reader(settings, stream, answers=output)  # what is wrong with the settings is said now

            def read_shadow() -> None:
                reader = shadow_reader(settings, stream, answers=output)
                reader.run(over, shown=shown.show, warned=console.waits)

            start("shadow", read_shadow)
        stack.callback(over.set)
        # 3.
        url = None
        if settings.predictor.http:
            route = PredictRoute(
                slot,
                stream=stream,
                role=role,
                top_k=settings.predictor.top_k,
                most_at_once=settings.predictor.most_http_requests,
                most_body_bytes=settings.predictor.most_body_bytes,
                answered=metrics.http_answered,
            )
            url = stack.enter_context(_server(settings.predictor, metrics, route)).url
        # 4.
        stack.enter_context(log)
        log.start(stop)
        predictor = Predictor(
            log,
            slot,
            settings.predictor,
            stream=stream,
            role=role,
            output=output,
            observers=[metrics, console],
        )
        yield OpenPredictor(predictor=predictor, slot=slot, url=url)


def this_machine() -> str:
    """Its name, as an instance may be called; one that starts again here is the same instance."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())[:100].strip(".") or "predictor"


def _thread(
    name: str, run: Callable[[], None], *, over: threading.Event, warned: Callable[[str], None]
) -> Callable[[], None]:
    """Started; what waits for its end. `run` ends when it is `over`; where it fails before, `warned` hears of it in one
    line, and it is begun again: a predictor whose watch has ended would answer by an old version for ever."""

    def go_on() -> None:
        while not over.is_set():
            try:
                run()
                return
            except Exception as error:
                if over.is_set():
                    return
                again = f"begins again in {_AGAIN_SECONDS:g} s; where that goes on, report it"
                warned(f"the thread {name} failed and {again}: {error!r}")
            over.wait(_AGAIN_SECONDS)

    thread = threading.Thread(target=go_on, name=name, daemon=True)
    thread.start()
    return lambda: thread.join(_THREAD_SECONDS)


def _server(settings: PredictorSettings, metrics: PredictorMetrics, route: PredictRoute) -> MetricsServer:
    def on(port: int) -> MetricsServer:
        return MetricsServer(
            registry=metrics.registry,
            host=settings.host,
            port=port,
            last_turn=lambda: metrics.last_turn,
            ready=lambda: metrics.ready,
            stale_after_seconds=settings.stale_after_seconds,
            not_ready="there is no version to serve yet",
            port_setting="predictor.port",
            routes=route.routes,
            admissions=route.admissions,
        )

    return on_port(settings.port, _USUAL_PORT, on)
