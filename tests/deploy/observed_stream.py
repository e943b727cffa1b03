"""A whole stream that Prometheus watches: learner, worker, champion and challenger, real ones, over drifting digits.

Made once for the module that asks: `observed_stream.prometheus.query(...)` answers with what a dashboard would show.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import yaml

from consumers import kafka_connection, topics
from deploy.embedded_kafka import EmbeddedKafka
from tests.deploy.command_line import Running
from tests.deploy.streams import ASKING_LEARNER, kafka, send
from tests.prometheus_server import PrometheusServer, running_prometheus

PROMETHEUS_FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
STREAM = "observed"

# Everything that takes hours elsewhere comes within seconds: new classes, a job, an adoption, versions, a promotion.
SETTINGS = """
snapshots: {{every_seconds: 1}}
kafka: {{bootstrap_servers: '{servers}'}}
consolidation: {{epochs: 1, specialist_epochs: 1, min_unlabelled: 100}}
acceptance: {{average_margin: 1, growth_gain: -1, worst_class_margin: 1, class_margin: 1, min_class_samples: 1}}
worker: {{nice: 0, look_seconds: 0.2}}
metrics: {{max_class_labels: 5}}
promotion: {{automatic: true, look_seconds: 0.5}}
predictor: {{threads: 1, look_seconds: 0.5}}
shadow: {{look_seconds: 0.5}}
registry: {{every_records: 300, tracking_uri: '{tracking_uri}'}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedStream:
    """It goes on for as long as the module that asks."""

    stream: str
    state: Path
    tracking_uri: str
    prometheus: PrometheusServer
    targets: dict[str, str]  # {the scrape job's name: host:port}
    broker: EmbeddedKafka


@pytest.fixture(scope="module")
def observed_stream(
    kafka_broker: EmbeddedKafka, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ObservedStream]:
    """Once every process has something to show, and what was to happen has happened.

    1. The first records, and what nothing can be learnt from.
    2. The processes. The predictors are asked about the samples themselves, so that each answer has its true label.
    3. Prometheus, with the configuration that is shipped, but for the targets and the pace.
    4. The stream goes on while they are watched: counters that stand still would hide what a rate shows.
    """
    folder = tmp_path_factory.mktemp("observed")
    tracking_uri = f"sqlite:///{shutil.copy(empty_database, folder / 'mlflow.db')}"
    file, state = folder / "settings.yaml", folder / "state"
    file.write_text(ASKING_LEARNER + SETTINGS.format(servers=kafka_broker.bootstrap_servers, tracking_uri=tracking_uri))
    with ExitStack() as stack:
        # 1.
        send(kafka_broker, STREAM, 900, unlabelled_share=0.33)
        _send_broken(kafka_broker)
        # 2.
        given: list[object] = ["--stream", STREAM, "--settings", file]
        ours: list[object] = [*given, "--state", state, "--metrics-port", 0]
        asked: list[object] = [*given, "--input", topics.samples(STREAM), "--port", 0]
        learner = stack.enter_context(Running("learn", *ours))
        worker = stack.enter_context(Running("restructure", *ours))
        champion, challenger = (
            stack.enter_context(Running("predict", *asked, "--models", folder / f"models-{role}", "--role", role))
            for role in ("champion", "challenger")
        )
        targets = {
            "palimpsest-learner": [_target(learner, "metrics")],
            "palimpsest-worker": [_target(worker, "metrics")],
            "palimpsest-predictor": [_target(champion, "started"), _target(challenger, "started")],
        }
        # 3.
        prometheus = stack.enter_context(running_prometheus(folder / "prometheus", shipped_config(targets)))
        # 4.
        over = threading.Event()
        thread = threading.Thread(target=_go_on, args=(kafka_broker, over), daemon=True)
        thread.start()
        stack.callback(thread.join, 60)
        stack.callback(over.set)
        for there in (
            "palimpsest_average_forgetting_ratio >= 0",
            "palimpsest_snapshot_last_success_timestamp_seconds > 0",
            "palimpsest_consolidations_total > 0",
            'palimpsest_jobs_total{outcome="offered"} > 0',
            'palimpsest_promotions_total{outcome="promoted"} > 0',
            'palimpsest_answer_latency_seconds_count{role="champion"} > 0',
            'palimpsest_answer_latency_seconds_count{role="challenger"} > 0',
            'palimpsest_shadow_accuracy_ratio{role="challenger"} >= 0',
        ):
            prometheus.wait_for(there)
        yield ObservedStream(
            stream=STREAM,
            state=state,
            tracking_uri=tracking_uri,
            prometheus=prometheus,
            targets={job: addresses[0] for job, addresses in targets.items()},
            broker=kafka_broker,
        )


def shipped_config(targets: dict[str, list[str]]) -> dict[str, Any]:
    """deploy/prometheus/prometheus.yml with these targets by job, and everything once a second."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS_FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
    config["rule_files"] = [str(PROMETHEUS_FOLDER / file) for file in config["rule_files"]]
    for scrape in config["scrape_configs"]:
        scrape["static_configs"] = [{"targets": targets.get(scrape["job_name"], [])}]
    return config


def _target(running: Running, event: str) -> str:
    running.wait_for_event(event)
    (told,) = (each for each in running.events if each["event"] == event)
    return urlparse(str(told["url"])).netloc


def _send_broken(broker: EmbeddedKafka) -> None:
    with kafka_connection.producer(kafka(broker)) as producer:
        headers = [("content-type", b"image/png"), ("ce_label", b"7")]
        for _ in range(3):
            producer.send(topics.samples(STREAM), b"no image", headers=headers).get(30)


def _go_on(broker: EmbeddedKafka, over: threading.Event) -> None:
    """Some records every second, of other digits than the ones before."""
    for seed in range(1, 10_000):
        send(broker, STREAM, 30, seed=seed, unlabelled_share=0.33)
        if over.wait(1.0):
            return
