"""The learner's process on a real broker: kills, fall-backs and fencing, and records that other programs wrote."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from consumers import dead_letters, topics
from consumers.commit_log import CommitLog, LearnerFenced
from consumers.events import event_id
from consumers.kafka_commit_log import KafkaCommitLog
from consumers.kafka_record_source import KafkaRecordSource
from consumers.kafka_reports import kafka_reports
from consumers.kafka_settings import KafkaSettings
from consumers.learner_process import LearnerProcess
from consumers.manifest_facts import ProcessFacts
from consumers.observers import Observer
from consumers.process_settings import RegistrySettings, SnapshotSettings, StreamSettings
from deploy.embedded_kafka import EmbeddedKafka
from model_store.offers import OfferStore
from model_store.snapshot_store import SnapshotStore
from pipeline.record import Partition, Record
from pipeline.stream_learner import StepReport, StreamLearner
from tests.consumers.digit_records import Written, digit, digit_images, digit_stream
from tests.consumers.learner_world import (
    NEVER_SECONDS,
    Killed,
    KilledAfterSteps,
    KilledAfterTelling,
    KilledBeforeTelling,
    Witness,
    learner_settings,
)
from tests.ended_transactions import wait_until_transactions_ended
from tests.system_package import require_program

pytestmark = pytest.mark.kafka

DEADLINE_SECONDS = 30.0
# A poll that finds nothing proves idleness only once the brokers have said that the log ends there.
UNTIL_IDLE_SECONDS = 0.3
RECORDS = digit_stream(60)


class KafkaWorld:
    """A stream on the broker, and a folder of snapshots for each branch."""

    def __init__(self, broker: EmbeddedKafka, stream: str, folder: Path) -> None:
        self.stream = stream
        self.folder = folder
        self.kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        topics.ensure_source_topics(self.kafka, stream)
        topics.ensure_report_topics(self.kafka, stream)
        self.samples = topics.check_samples_topic(self.kafka, stream)

    def write(self, records: Sequence[Written], **options: Any) -> None:
        """As librdkafka writes: in batches of 16 records, zstd; in transactions of which every third is aborted."""
        producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "compression.type": "zstd",
                "transactional.id": f"writer-{self.stream}",
            }
            | options
        )
        producer.init_transactions(DEADLINE_SECONDS)
        parts = [records[start : start + 16] for start in range(0, len(records), 16)]
        for number, part in enumerate(parts):
            for attempt in ["aborted", "committed"] if number % 3 == 1 else ["committed"]:
                producer.begin_transaction()
                for record in part:
                    producer.produce(
                        topics.samples(self.stream), record.value, record.key, headers=list(record.headers)
                    )
                if attempt == "aborted":
                    assert producer.flush(DEADLINE_SECONDS) == 0
                    producer.abort_transaction(DEADLINE_SECONDS)
                else:
                    producer.commit_transaction(DEADLINE_SECONDS)

    def store(self, branch: str = "main") -> SnapshotStore:
        return SnapshotStore(self.folder / branch)

    @contextlib.contextmanager
    def process(
        self,
        *,
        branch: str = "main",
        observer: Observer | None = None,
        fault: Callable[[CommitLog], CommitLog] = lambda inner: inner,
        every_records: int = 45,
        offers: OfferStore | None = None,
    ) -> Iterator[LearnerProcess]:
        with (
            KafkaRecordSource(self.kafka, self.samples.partitions) as source,
            KafkaCommitLog(self.kafka, self.stream, branch, self.samples.partitions) as commit_log,
        ):
            process = LearnerProcess(
                learner=StreamLearner(learner_settings()),
                source=source,
                commit_log=fault(commit_log),
                store=self.store(branch),
                facts=ProcessFacts(
                    stream=self.stream,
                    branch=branch,
                    topic=self.samples.topic,
                    cluster_id=self.samples.cluster_id,
                    topic_id=self.samples.topic_id,
                    state_id="state",
                ),
                stream_settings=StreamSettings(poll_seconds=0.05, idle_flush_seconds=NEVER_SECONDS),
                snapshot_settings=SnapshotSettings(every_seconds=NEVER_SECONDS, every_records=every_records),
                registry_settings=RegistrySettings(),
                observer=observer or Observer(),
                reports=kafka_reports(self.kafka, stream=self.stream, branch=branch) if branch == "main" else None,
                offers=offers,
            )
            process.start()
            yield process

    def learn(self, *, max_records: int | None = None, **parts: Any) -> None:
        with self.process(**parts) as process:
            process.run(stop=threading.Event(), until_idle_seconds=UNTIL_IDLE_SECONDS, max_records=max_records)

    def fingerprint(self, branch: str = "main") -> str:
        snapshot = self.store(branch).newest_whole().snapshot
        assert snapshot is not None
        return snapshot.fingerprint()

    def read(self, topic: str) -> list[Record]:
        """All that a reader of committed records finds."""
        wait_until_transactions_ended(self.kafka, topic)
        records: list[Record] = []
        with KafkaRecordSource(self.kafka, [Partition(topic, 0)]) as source:
            while source.positions() != source.end_offsets():
                records += source.poll(500, 0.2)
        return records


@pytest.fixture
def world(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> KafkaWorld:
    return KafkaWorld(kafka_broker, stream_name, tmp_path)


def test_the_same_model_and_each_dead_letter_once_after_kills_and_losses(world: KafkaWorld) -> None:
    """Two branches of one log, which has aborted transactions in it: one undisturbed, the other not."""
    world.write(RECORDS)
    world.learn(branch="undisturbed")
    written = world.read(topics.samples(world.stream))
    assert Counter(record.value for record in written) == Counter(record.value for record in RECORDS)
    assert written[-1].offset > len(RECORDS), "aborted records and markers lie in between"
    assert world.read(topics.events(world.stream)) == [], "only main tells"

    # 1. A stop at an odd place.
    world.learn(max_records=33)
    # 2. A kill between a snapshot and its transaction.
    with pytest.raises(Killed):
        world.learn(fault=lambda inner: KilledBeforeTelling(inner, commits=1))
    # 3. A kill right after a transaction; before it the start has told what was untold.
    with pytest.raises(Killed):
        world.learn(fault=lambda inner: KilledAfterTelling(inner, commits=2), every_records=30)
    # 4. The newest snapshot is lost, and the learner dies before it is past where it fell from.
    shutil.rmtree(world.store().entries()[-1].path)
    with pytest.raises(Killed):
        world.learn(observer=KilledAfterSteps(1))
    # 5. To the end.
    world.learn()

    assert world.fingerprint() == world.fingerprint("undisturbed")
    bad = [record.value for record in RECORDS if record.fate == "bad"]
    told = world.read(topics.dead_letters(world.stream))
    assert [record.value for record in told] == bad, "each once, in order"
    offsets = [dead_letters.origin(record.headers) for record in told]
    assert offsets == [
        (record.topic, record.partition, record.offset)
        for record, ours in zip(written, RECORDS, strict=True)
        if ours.fate == "bad"
    ]
    new_classes = [record for record in world.read(topics.events(world.stream)) if record.key == b"new_class"]
    names = [json.loads(record.value or b"")["class"] for record in new_classes]
    assert sorted(set(names)) == ["0", "1", "2", "3", "4", "5"]
    assert len({event_id(record.headers) for record in new_classes}) == 6
    generations = {entry.generation for entry in world.store().entries()}
    assert max(generations) == 5


def test_a_flush_is_told_and_obeyed_after_a_fall_back(world: KafkaWorld) -> None:
    world.write(RECORDS[:75])
    world.learn()
    flushed = world.fingerprint()
    shutil.rmtree(world.store().entries()[-1].path)
    world.write(RECORDS[75:])
    snapshots: list[str] = []

    class Looks(Observer):
        def stepped(self, learner: StreamLearner, report: StepReport) -> None:
            if report.batch.ended_by is not None:
                snapshots.append(report.batch.labels[0])

    world.learn(observer=Looks())
    assert len(snapshots) == 1, "the batch that was flushed is flushed again"
    assert flushed != world.fingerprint()
    events = [record for record in world.read(topics.events(world.stream)) if record.key == b"idle_flush"]
    assert len({event_id(record.headers) for record in events}) == len(events) == 2


def test_a_newer_learner_fences_the_older_one(world: KafkaWorld) -> None:
    world.write(RECORDS[:100])

    class IsOvertaken(Witness):
        def stepped(self, learner: StreamLearner, report: StepReport) -> None:
            super().stepped(learner, report)
            if len(self.steps) == 2:
                world.learn(max_records=20)

    witness = IsOvertaken()
    with pytest.raises(LearnerFenced):
        world.learn(observer=witness)
    assert len(witness.commits) == 0, "none of its commits went through after that"
    assert [thread for thread in threading.enumerate() if thread.name == "palimpsest-decode-ahead"] == []
    entries = world.store().entries()
    assert entries[-1].generation == 2
    world.learn()
    world.learn(branch="undisturbed")
    assert world.fingerprint() == world.fingerprint("undisturbed")


def test_records_that_come_while_it_learns_are_learnt(world: KafkaWorld) -> None:
    stop = threading.Event()
    witness = Witness()
    with world.process(observer=witness) as process:
        thread = threading.Thread(target=process.run, kwargs={"stop": stop})
        thread.start()
        try:
            world.write(RECORDS[:60])
            deadline = time.monotonic() + DEADLINE_SECONDS
            while process.learner.records_consumed < 40:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            stop.set()
            thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert witness.commits
    assert witness.commits[-1].entry.facts["records_consumed"] == process.learner.records_consumed


def test_a_record_that_kcat_wrote_is_learnt(world: KafkaWorld, tmp_path: Path) -> None:
    """librdkafka's command line: the value from a file, attributes as headers."""
    kcat = require_program("kcat", package="kcat")
    labels = digit_images()[1]
    for item in range(12):
        file = tmp_path / f"{item}.png"
        file.write_bytes(digit(item).value or b"")
        headers = {
            "ce_specversion": "1.0",
            "ce_id": f"kcat-{item}",
            "ce_source": "kcat",
            "ce_type": "sample",
            "content-type": "image/png",
            "ce_label": f"Ziffer {labels[item]} ✎",
        }
        command = [kcat, "-P", "-b", str(world.kafka.bootstrap_servers), "-t", topics.samples(world.stream)]
        for name, value in headers.items():
            command += ["-H", f"{name}={value}"]
        subprocess.run([*command, str(file)], check=True, timeout=DEADLINE_SECONDS, capture_output=True)
    world.learn()
    snapshot = world.store().newest_whole().snapshot
    assert snapshot is not None
    trained, held_out = snapshot.state["records_trained"], snapshot.state["records_held_out"]
    assert int(str(trained)) + int(str(held_out)) == 12
    classes = snapshot.facts["classes"]
    assert isinstance(classes, list)
    assert set(map(str, classes)) <= {f"Ziffer {label} ✎" for label in labels[:12]}
    assert len(classes) > 5
    assert world.read(topics.dead_letters(world.stream)) == []
