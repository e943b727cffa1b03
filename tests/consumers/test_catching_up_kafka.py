"""An offer on a real broker, whose topic keeps its records for long or not: what the brokers say decides."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, cast

import confluent_kafka
import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from consumers import kafka_connection, learner_process, topics
from consumers.catching_up import AGAIN, Pace
from consumers.kafka_record_source import KafkaRecordSource
from deploy.embedded_kafka import EmbeddedKafka
from model_store.offers import OfferStore
from tests.consumers.digit_records import digit_stream
from tests.consumers.learner_world import Witness
from tests.consumers.test_learner_process_kafka import DEADLINE_SECONDS, KafkaWorld

pytestmark = pytest.mark.kafka

RECORDS = digit_stream(60)
HOUR = 3_600.0


@pytest.fixture(autouse=True)
def _slow_and_looking_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner that finds that a record takes it twenty seconds."""

    def measured(**_: Any) -> Pace:
        return Pace(records=2_000, seconds=40_000)

    monkeypatch.setattr(learner_process, "Pace", measured)
    monkeypatch.setattr("consumers.adoption._LOOK_EVERY_SECONDS", 0.0)


def offered(broker: EmbeddedKafka, stream: str, folder: Path, *, retention_hours: float) -> KafkaWorld:
    """All was written at a stroke, an hour ago, and is learnt; its first snapshot is offered, unchanged."""
    world = KafkaWorld(broker, stream, folder)
    producer = confluent_kafka.Producer({"bootstrap.servers": world.kafka.bootstrap_servers})
    for record in RECORDS:
        producer.produce(
            world.samples.topic,
            record.value,
            record.key,
            headers=list(record.headers),
            timestamp=round((time.time() - HOUR) * 1000),
        )
    assert producer.flush(DEADLINE_SECONDS) == 0
    world.learn()
    first = world.store().entries()[0]
    parent = world.store().load(first)
    OfferStore(folder / "offers").put("consolidation-1", "consolidation", parent, parent, {})
    configs = {"retention.ms": str(round(retention_hours * HOUR * 1000))}
    with kafka_connection.admin(world.kafka) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, world.samples.topic, configs)])
    deadline = time.monotonic() + DEADLINE_SECONDS
    with KafkaRecordSource(world.kafka, world.samples.partitions) as source:
        while source.retention_seconds() != retention_hours * HOUR:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    return world


def told(world: KafkaWorld, kind: str) -> list[dict[str, Any]]:
    events = [record for record in world.read(topics.events(world.stream)) if record.key == kind.encode()]
    return [cast("dict[str, Any]", json.loads(event.value or b"")) for event in events]


def test_with_ample_retention_it_is_adopted(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> None:
    """Though the log was written at a stroke, which was a high rate once."""
    world = offered(kafka_broker, stream_name, tmp_path, retention_hours=24)
    before = world.fingerprint()
    world.learn(offers=OfferStore(tmp_path / "offers"))
    assert told(world, "offer_refused") == []
    (adopted,) = told(world, "adopted")
    assert adopted["expected_seconds"] == pytest.approx(adopted["records_to_relearn"] * 20, rel=0.01)
    newest = world.store().newest_whole().snapshot
    assert newest is not None
    assert newest.offsets == {world.samples.partitions[0]: len(RECORDS)}
    assert newest.state["records_consumed"] == len(RECORDS)
    assert before != world.fingerprint(), "it knows of an adoption"


def test_where_the_log_would_delete_it_meanwhile_it_is_refused(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    """A quarter of an hour is left of the retention, and the better part of an hour is needed."""
    world = offered(kafka_broker, stream_name, tmp_path, retention_hours=1.25)
    witness = Witness()
    world.learn(observer=witness, offers=OfferStore(tmp_path / "offers"))
    assert told(world, "adopted") == []
    (refused,) = told(world, "offer_refused")
    assert re.fullmatch(
        r"\d+ records would be learnt again, at 0\.05 records/s while 0/s arrive, which takes 5\d\.\d min, and the log "
        r"may delete the oldest in 1\d\.\d min \(its retention is 1\.2 h\); raise the samples' retention\.ms, or make "
        r"the learner faster, and .*",
        refused["why"],
    ), refused["why"]
    assert refused["why"].endswith(AGAIN)
    assert witness.warnings == [f"the offer of consolidation-1 was refused: {refused['why']}"]
    assert OfferStore(tmp_path / "offers").waiting() != [], "until two snapshots know of it"
