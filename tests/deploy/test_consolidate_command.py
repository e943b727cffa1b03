"""`palimpsest consolidate` on a real broker: what it makes is offered, and the state's learner adopts it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.commands.consolidate import command
from deploy.embedded_kafka import EmbeddedKafka
from model_store.snapshot_store import SnapshotStore
from pipeline.user_error import UserError
from producers.schedules.split import Split
from tests.deploy import streams
from tests.deploy.streams import events, learn, settings_file

SETTINGS = """
registry: {enabled: false}
snapshots: {every_records: 40, keep: 30}
consolidation: {min_unlabelled: 100}
"""
ANYTHING = (
    "acceptance: {average_margin: 1, growth_gain: -1, worst_class_margin: 1, class_margin: 1, min_class_samples: 1}\n"
)


def send(broker: EmbeddedKafka, stream_name: str, records: int, *, seed: int = 0) -> None:
    """Three steps of two digits, a third without labels."""
    streams.send(broker, stream_name, records, schedule=Split(), seed=seed, unlabelled_share=0.33)


def consolidate(stream: str, state: Path, file: Path, *arguments: str) -> Result:
    given = ["--stream", stream, "--state", str(state), "--settings", str(file), "--epochs", "2", *arguments]
    return CliRunner().invoke(command, given, catch_exceptions=False)


@pytest.mark.kafka
def test_what_it_makes_is_offered_and_adopted(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> None:
    state, file = tmp_path / "state", settings_file(tmp_path, kafka_broker, SETTINGS + ANYTHING)
    send(kafka_broker, stream_name, 900)
    learn(stream_name, state, file)
    sequence = SnapshotStore(state / "snapshots").entries()[-1].sequence
    done = consolidate(stream_name, state, file)
    assert done.exit_code == 0, done.output
    first, *_, last = done.stdout.splitlines()
    assert "from before the new classes: snapshot" in first
    assert "new classes: " in first
    assert last.startswith(f"consolidation-{sequence} is offered, from ")
    send(kafka_broker, stream_name, 60, seed=1)
    learn(stream_name, state, file)
    (told,) = events(kafka_broker, stream_name, "adopted")
    assert told["job"] == f"consolidation-{sequence}"
    assert told["kind"] == "consolidation"
    newest = SnapshotStore(state / "snapshots").newest_whole().snapshot
    assert newest is not None
    assert newest.facts["decided_jobs"] == [f"consolidation-{sequence}"]


@pytest.mark.kafka
def test_a_refusal_is_one_line_and_exit_code_3(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    file = settings_file(
        tmp_path, kafka_broker, SETTINGS.replace("min_unlabelled: 100", "min_unlabelled: 5000") + ANYTHING
    )
    send(kafka_broker, stream_name, 600)
    learn(stream_name, state, file)
    refused = consolidate(stream_name, state, file)
    assert refused.exit_code == 3
    assert refused.stderr.startswith("palimpsest: nothing is offered: ")
    assert "unlabelled rows are too few" in refused.stderr
    assert not (state / "offers").exists()
    with pytest.raises(UserError, match="topic nowhere does not exist"):
        consolidate(stream_name, state, file, "--unlabelled", "nowhere")
    with pytest.raises(UserError, match="holds no snapshot 99; there are "):
        consolidate(stream_name, state, file, "--base", "99")
    with pytest.raises(UserError, match=f"holds the state of stream '{stream_name}', not 'another'"):
        consolidate("another", state, file)


def test_a_folder_without_snapshots_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no snapshots; `palimpsest learn"):
        CliRunner().invoke(command, ["--stream", "s", "--state", str(tmp_path)], catch_exceptions=False)
