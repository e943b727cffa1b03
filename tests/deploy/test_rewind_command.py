"""`palimpsest learn --from-snapshot` and `--from-offsets`, as a supervisor would start them again and again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from consumers import kafka_connection, topics
from consumers.commit_log import transactional_id
from deploy.embedded_kafka import EmbeddedKafka
from deploy.learning import open_learner
from deploy.rewinding import offsets_at_time, rewind
from deploy.settings import Settings, load_settings
from model_store.snapshot import Snapshot
from model_store.snapshot_store import SnapshotStore
from pipeline.record import Partition
from pipeline.user_error import UserError
from tests.deploy.command_line import palimpsest
from tests.deploy.streams import kafka, send, settings_file

MORE = "registry: {enabled: false}\nsnapshots: {every_records: 60, keep: 50}\n"


@pytest.mark.kafka
def test_a_branch_goes_back_and_comes_to_mains_model_and_main_stays_as_it_was(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    file = settings_file(tmp_path, kafka_broker, MORE)
    settings = load_settings(file)

    def learn(branch: str, max_records: int | None = None) -> Snapshot:
        with open_learner(stream=stream_name, state=tmp_path / branch, settings=settings, branch=branch) as opened:
            opened.process.run(stop=threading.Event(), until_idle_seconds=0.2, max_records=max_records)
        snapshot = SnapshotStore(tmp_path / branch / "snapshots").newest_whole().snapshot
        assert snapshot is not None
        return snapshot

    for seed in (0, 1):  # main is idle once in the midst
        send(kafka_broker, stream_name, 205, seed=seed)
        newest = learn("main")
    store = SnapshotStore(tmp_path / "main" / "snapshots")
    before = [(entry.number, entry.sha256) for entry in store.entries()]
    committed = group_offsets(kafka_broker, stream_name, "main")
    first = store.entries()[0]
    assert int(str(first.facts["records_consumed"])) < 205
    which = f"{first.generation}-{first.sequence}"

    def go_back(branch: str = "past", from_offsets: str | None = None) -> bool:
        return rewind(
            stream=stream_name,
            branch=branch,
            state=tmp_path / branch,
            settings=settings,
            from_state=None if from_offsets else tmp_path / "main",
            from_snapshot=None if from_offsets else which,
            from_offsets=from_offsets,
        )

    # Begun, stopped, and started again with the same command line.
    assert go_back()
    learn("past", max_records=30)
    there = ("--from-state", tmp_path / "main", "--from-snapshot", which)
    arguments = ("--stream", stream_name, "--settings", file, "--until-idle", 0.2, "--branch", "past")
    done = palimpsest("learn", *arguments, "--state", tmp_path / "past", *there)
    assert done.returncode == 0, done.stderr
    learnt = SnapshotStore(tmp_path / "past" / "snapshots").newest_whole().snapshot
    assert learnt is not None
    assert learnt.fingerprint() == newest.fingerprint()
    assert before == [(entry.number, entry.sha256) for entry in store.entries()]
    assert committed == group_offsets(kafka_broker, stream_name, "main")

    with pytest.raises(UserError, match="did not begin with a new model at 0:7; give an empty --state"):
        go_back(from_offsets="0:7")
    with pytest.raises(UserError, match="branch 'main' is never rewound"):
        go_back("main")


@pytest.mark.kafka
def test_a_time_is_where_the_first_record_that_is_not_older_lies(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    settings = kafka(kafka_broker)
    topics.ensure_source_topics(settings, stream_name, partitions=2)
    producer = kafka_connection.producer(settings)
    for second in (10, 20, 30):
        producer.send(topics.samples(stream_name), value=b"x", partition=0, timestamp_ms=second * 1000).get(30)
    producer.close()
    at_time = offsets_at_time(settings, topics.check_samples_topic(settings, stream_name))
    first = Partition(topics.samples(stream_name), 0)
    assert [at_time(ms) for ms in (0, 10_001, 30_000, 30_001)] == [{first: 0}, {first: 1}, {first: 2}, {}]


@pytest.mark.parametrize(
    ("from_state", "from_snapshot", "from_offsets"),
    [(Path("x"), None, None), (None, "1", None), (Path("x"), "1", "end"), (Path("x"), None, "end")],
)
def test_options_that_make_no_sense_together_are_refused(
    from_state: Path | None, from_snapshot: str | None, from_offsets: str | None, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="give --from-state DIR and --from-snapshot N together, or --from-offsets"):
        rewind(
            stream="s",
            branch="b",
            state=tmp_path / "state",
            settings=Settings(),
            from_state=from_state,
            from_snapshot=from_snapshot,
            from_offsets=from_offsets,
        )
    assert not (tmp_path / "state").exists()


def test_a_folder_without_snapshots_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere holds no snapshots; check --from-state"):
        rewind(
            stream="s",
            branch="b",
            state=tmp_path / "state",
            settings=Settings(),
            from_state=tmp_path / "nowhere",
            from_snapshot="1",
            from_offsets=None,
        )


def group_offsets(broker: EmbeddedKafka, stream: str, branch: str) -> object:
    group = transactional_id(stream, branch)
    with kafka_connection.admin(kafka(broker)) as admin:
        return admin.list_group_offsets({group: None})[group]
