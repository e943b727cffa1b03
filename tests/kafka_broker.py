"""Fixtures: one real broker for the whole test session, and a stream name that no other test uses."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import pytest

from deploy.embedded_kafka import EmbeddedKafka


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """A broker on a free port; its `bootstrap_servers` is what clients need."""
    with EmbeddedKafka(tmp_path_factory.mktemp("kafka_broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """A broker of the module's own, for tests that kill it."""
    with EmbeddedKafka(tmp_path_factory.mktemp("faulty_broker"), heap_mb=256) as broker:
        yield broker
        broker.start()  # a test that failed may have left it dead; what is running is stopped at the end


@pytest.fixture
def mortal_broker(own_broker: EmbeddedKafka) -> EmbeddedKafka:
    """`own_broker`, running again whatever the test before did to it."""
    own_broker.start()
    return own_broker


@pytest.fixture
def stream_name(request: pytest.FixtureRequest) -> str:
    """A name that tells in the broker's log which test it belongs to, and is not used twice, also by parameters."""
    readable = re.sub(r"[^a-z0-9-]+", "-", request.node.name.lower()).strip("-")[:40]
    return f"{readable}-{uuid.uuid4().hex[:8]}"
