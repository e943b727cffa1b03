"""Fixtures: one fork server for all tests of this folder, and a trial on a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from tests.faults.harness import Trial
from tests.faults.learner_runs import ForkServer


@pytest.fixture(scope="package")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture
def make_trial(
    fork_server: ForkServer, kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> Iterator[Callable[..., Trial]]:
    """Called once in a test, with what is to be otherwise."""

    def make(**options: Any) -> Trial:
        kafka = KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers)
        return Trial(fork_server, kafka, stream_name, tmp_path / "trial", **options)

    yield make
    fork_server.end_all()
