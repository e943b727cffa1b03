"""`palimpsest learn` while its broker, this module's own, is killed, restarted, or has its topic made anew."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from consumers import topics
from deploy.embedded_kafka import EmbeddedKafka
from model_store.snapshot_store import SnapshotStore
from tests.deleted_topic import delete_topic
from tests.deploy.command_line import Running, events, palimpsest
from tests.deploy.streams import kafka, send, settings_file

pytestmark = pytest.mark.kafka

RECORDS = 600
SETTINGS = "registry: {enabled: false}\nsnapshots: {every_records: 100}\n"


@pytest.fixture
def broker(mortal_broker: EmbeddedKafka) -> EmbeddedKafka:
    return mortal_broker


def settings(folder: Path, broker: EmbeddedKafka) -> Path:
    """No flush by the clock: where batches end must be the same with and without the outage."""
    file = settings_file(folder, broker, SETTINGS)
    file.write_text(file.read_text().replace("poll_seconds: 0.05", "poll_seconds: 0.05, idle_flush_seconds: 1000"))
    return file


def committed_records(state: Path) -> int:
    """How far the newest snapshot has come on the topic's one partition."""
    entries = SnapshotStore(state / "snapshots").entries()
    return sum(entries[-1].offsets.values()) if entries else 0


def count(lines: list[str], text: str) -> int:
    return sum(text in line for line in lines)


@pytest.mark.parametrize(
    ("how", "away_seconds"),
    [
        pytest.param("kill", 8.0, marks=pytest.mark.slow),
        ("stop", 0.0),
        pytest.param("kill", 60.0, marks=pytest.mark.slow),
    ],
)
def test_an_outage_costs_time_and_nothing_else(
    broker: EmbeddedKafka, stream_name: str, tmp_path: Path, how: str, away_seconds: float
) -> None:
    send(broker, stream_name, RECORDS)
    learn = ("learn", "--stream", stream_name, "--settings", settings(tmp_path, broker))
    with Running(*learn, "--state", tmp_path / "main") as running:
        running.wait_for_event("snapshot")
        down_at = time.monotonic()
        if how == "kill":
            broker.kill()
        else:
            broker.stop()
        running.wait_for(lambda lines: count(lines, "trying to reach them again") > 0)
        time.sleep(away_seconds)  # the outage
        broker.start()
        running.wait_for(lambda lines: count(lines, "the brokers answer again") > 0)
        outage_seconds = time.monotonic() - down_at  # with the broker's start
        send(broker, stream_name, RECORDS, seed=1)
        running.wait_for(lambda _: committed_records(tmp_path / "main") > RECORDS + 100)
        running.signal(signal.SIGTERM)
        assert running.end() == 0
        told = running.events
    stopped = told[-1]
    assert stopped["event"] == "stopped"
    assert stopped["records"] > RECORDS
    outages = count(running.lines, "the brokers answer again")
    assert count(running.lines, "trying to reach them again") == outages, "each is said once"
    assert len([line for line in told if line["event"] in ("log", "warning")]) <= 12 + outage_seconds / 5, "no flood"
    # The same records, each once: a learner that met no outage ends with the same model, bit for bit.
    other = palimpsest(
        *learn, "--branch", "undisturbed", "--state", tmp_path / "undisturbed", "--max-records", stopped["records"]
    )
    assert other.returncode == 0, other.stderr
    assert events(other.stderr)[-1]["records"] == stopped["records"]
    prints = [palimpsest("fingerprint", "--state", tmp_path / branch).stdout for branch in ("main", "undisturbed")]
    assert len(prints[0].strip()) == 64
    assert prints[0] == prints[1]


def test_a_topic_made_anew_ends_the_learner_with_code_5(
    broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    send(broker, stream_name, 200)
    learn = ("learn", "--stream", stream_name, "--state", tmp_path / "state", "--settings", settings(tmp_path, broker))
    with Running(*learn) as running:
        running.wait_for_event("snapshot")
        delete_topic(kafka(broker), topics.samples(stream_name))
        running.wait_for(lambda lines: count(lines, "trying to reach them again") > 0)
        send(broker, stream_name, 200)
        assert running.end() == 5
        last = running.events[-1]
    assert (last["event"], last["exit_code"]) == ("failed", 5)
    # Whichever is seen first: another id, that the log of the new topic knows nothing of the position, or no topic.
    seen = ("deleted and made anew", "lost its tail from offset", "was deleted while it was read")
    assert any(each in last["message"] for each in seen), last
