"""`palimpsest erase` on a real broker: no raw byte of the subject stays, and the learner goes on without it."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path

import confluent_kafka
import numpy as np
import pytest
from click.testing import CliRunner, Result

from consumers import topics
from consumers.kafka_record_source import KafkaRecordSource
from consumers.record_source import read_records
from deploy.commands.erase import command
from deploy.embedded_kafka import EmbeddedKafka
from deploy.learning import open_learner
from deploy.settings import load_settings
from model_store.snapshot_store import SnapshotStore
from pipeline.codec.cloud_event import CloudEvent
from pipeline.codec.npy import encode_npy
from pipeline.evaluation.hold_out import HoldOut
from pipeline.record import Partition, Record
from pipeline.settings import HoldOutSettings
from pipeline.user_error import UserError
from tests.deploy.command_line import Running
from tests.deploy.streams import kafka, settings_file

DEADLINE_SECONDS = 30.0
SETTINGS = "registry: {enabled: false}\nsnapshots: {every_records: 60, keep: 20}\n"
# Large enough for the rows to be cut into block files, which snapshots share by links.
WIDTH = 3000
MARK = np.float32(-7.654321e-12)  # four bytes that no weight has twice in a row


def people(*, held_out: bool) -> str:
    """Somebody who is held out by the usual salt, or trained on."""
    hold_out = HoldOut(HoldOutSettings())
    names = (f"person {number}" for number in range(1000))
    return next(name for name in names if (hold_out.subject_key(name) % 2**64 < 0.15 * 2**64) == held_out)


TRAINED, HELD_OUT = people(held_out=False), people(held_out=True)


def produce(broker: EmbeddedKafka, stream: str, subject: str, *, first: int, records: int) -> None:
    """Every fourth is the subject's and carries the mark; every 32nd of all cannot be decoded."""
    producer = confluent_kafka.Producer({"bootstrap.servers": broker.bootstrap_servers, "log_level": 2})
    for number in range(first, first + records):
        x = np.random.Generator(np.random.Philox(key=number)).normal(size=WIDTH).astype(np.float32)
        x[:10] = number % 3
        if number % 4 == 0:
            x[-20:] = MARK
        event = CloudEvent(
            id=str(number),
            source="tests",
            type="sample",
            content_type="application/x-spoilt" if number % 32 == 0 else "application/x-npy",
            data=encode_npy(x),
            subject=subject if number % 4 == 0 else f"somebody {number}",
            label="abc"[number % 3],
        )
        producer.produce(topics.samples(stream), event.data, headers=list(event.headers()))
    assert producer.flush(DEADLINE_SECONDS) == 0


def read(broker: EmbeddedKafka, topic: str) -> list[Record]:
    with KafkaRecordSource(kafka(broker), [Partition(topic, 0)]) as source:
        return list(read_records(source, source.beginning_offsets(), source.end_offsets()))


def files_with_mark(state: Path) -> list[str]:
    """Anywhere under the state: raw bytes in any file, and in the outboxes, which are base64."""
    mark = MARK.tobytes() * 2
    found = [str(path) for path in state.rglob("*") if path.is_file() and mark in path.read_bytes()]
    store = SnapshotStore(state / "snapshots")
    outboxes = {entry.path.name: store.load(entry).outbox for entry in store.entries()}
    found += [name for name, messages in outboxes.items() if any(mark in (m.value or b"") for m in messages)]
    return found


def learn(stream: str, state: Path, file: Path) -> int:
    """To the end of the log; how many records that were."""
    with open_learner(stream=stream, state=state, settings=load_settings(file)) as opened:
        return opened.process.run(stop=threading.Event(), until_idle_seconds=0.3).records


def erase(broker: EmbeddedKafka, stream: str, state: Path, subject: str) -> Result:
    arguments = ["--stream", stream, "--state", str(state), "--subject", subject]
    return CliRunner().invoke(
        command, [*arguments, "--bootstrap-servers", broker.bootstrap_servers], catch_exceptions=False
    )


@pytest.mark.kafka
@pytest.mark.parametrize("subject", [TRAINED, HELD_OUT], ids=["trained", "held-out"])
def test_nothing_raw_stays_and_the_learner_goes_on_without_the_subject(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path, subject: str
) -> None:
    topics.ensure_source_topics(kafka(kafka_broker), stream_name)
    produce(kafka_broker, stream_name, subject, first=0, records=240)
    state, file = tmp_path / "state", settings_file(tmp_path, kafka_broker, SETTINGS)
    assert learn(stream_name, state, file) == 240
    store = SnapshotStore(state / "snapshots")
    entries = store.entries()
    assert len(entries) >= 3
    assert len(files_with_mark(state)) >= 3, "else the test shows nothing"

    done = erase(kafka_broker, stream_name, state, subject)
    assert (done.exit_code, done.stderr) == (0, "")
    assert files_with_mark(state) == []
    newest, rewritten, skipped, not_reached = done.stdout.splitlines()
    assert newest.startswith("newest state: ")
    assert rewritten.startswith(f"{len(entries)} snapshots rewritten: ")
    assert f"{stream_name}.samples-0 offset 240 are skipped from now on" in skipped
    assert not_reached.startswith(f"not reached: {stream_name}.samples and {stream_name}.dead-letters")
    told = [record for record in read(kafka_broker, topics.events(stream_name)) if record.key == b"subject_erased"]
    (data,) = [json.loads(record.value or b"") for record in told]
    assert data["until"] == [[f"{stream_name}.samples", 0, 240]]
    assert data["reservoir_rows"] + data["held_out_samples"] > 0
    assert subject not in json.dumps(data)
    dead = len(read(kafka_broker, topics.dead_letters(stream_name)))

    # A fall-back to the oldest snapshot replays the log, which still holds the records.
    entries = store.entries()
    for entry in entries[1:]:
        shutil.rmtree(entry.path)
    assert learn(stream_name, state, file) == 240 - sum(entries[0].offsets.values()) > 0
    assert files_with_mark(state) == []
    assert len(read(kafka_broker, topics.dead_letters(stream_name))) == dead

    # What is written after the erasure is ordinary.
    produce(kafka_broker, stream_name, subject, first=240, records=120)
    assert learn(stream_name, state, file) == 120
    assert files_with_mark(state)


@pytest.mark.kafka
def test_a_learner_that_runs_is_in_the_way_and_is_not_disturbed(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    topics.ensure_source_topics(kafka(kafka_broker), stream_name)
    produce(kafka_broker, stream_name, TRAINED, first=0, records=80)
    state, file = tmp_path / "state", settings_file(tmp_path, kafka_broker, SETTINGS)
    with Running("learn", "--stream", stream_name, "--state", state, "--settings", file) as running:
        running.wait_for_event("snapshot")
        with pytest.raises(
            UserError, match=f"a learner, a rewind, a restructuring or another erasure works on {state}: stop it, erase"
        ):
            erase(kafka_broker, stream_name, state, TRAINED)
        running.signal(signal.SIGTERM)
        assert running.end() == 0
    assert erase(kafka_broker, stream_name, state, TRAINED).exit_code == 0
    assert files_with_mark(state) == []


def test_a_folder_without_snapshots_is_one_line(tmp_path: Path) -> None:
    for state in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=f"{state} holds no snapshots, so nothing to erase"):
            CliRunner().invoke(
                command, ["--stream", "s", "--state", str(state), "--subject", "x"], catch_exceptions=False
            )
    assert list(tmp_path.iterdir()) == []


def test_an_empty_subject_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--subject is empty"):
        CliRunner().invoke(
            command, ["--stream", "s", "--state", str(tmp_path), "--subject", ""], catch_exceptions=False
        )
