"""`palimpsest expand` on a real broker: the network grows by hand, and the state's learner adopts what comes of it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.commands.expand import command
from deploy.embedded_kafka import EmbeddedKafka
from model_store.snapshot_store import SnapshotStore
from pipeline.user_error import UserError
from tests.deploy.command_line import Running, palimpsest
from tests.deploy.streams import events, learn, settings_file
from tests.deploy.test_consolidate_command import ANYTHING, send

SETTINGS = """
registry: {enabled: false}
snapshots: {every_records: 40, keep: 30}
expansion: {distillation_epochs: 2, head_epochs: 10}
"""


def expand(stream: str, state: Path, file: Path, *arguments: str) -> Result:
    given = ["--stream", stream, "--state", str(state), "--settings", str(file), "--epochs", "2", *arguments]
    return CliRunner().invoke(command, given, catch_exceptions=False)


@pytest.mark.kafka
def test_what_it_makes_is_offered_and_adopted(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> None:
    state, file = tmp_path / "state", settings_file(tmp_path, kafka_broker, SETTINGS + ANYTHING)
    send(kafka_broker, stream_name, 900)
    learn(stream_name, state, file)
    sequence = SnapshotStore(state / "snapshots").entries()[-1].sequence
    done = expand(stream_name, state, file)
    assert done.exit_code == 0, done.output
    first, *between, last = done.stdout.splitlines()
    assert "from before the new classes: snapshot" in first
    assert any(line.startswith("sub-modules: 1 before, 2 now; parameters: ") for line in between)
    assert last.startswith(f"expansion-{sequence} is offered, from ")
    send(kafka_broker, stream_name, 60, seed=1)
    learn(stream_name, state, file)
    (told,) = events(kafka_broker, stream_name, "adopted")
    assert (told["job"], told["kind"]) == (f"expansion-{sequence}", "expansion")
    assert (told["sub_modules_before"], told["sub_modules_after"]) == (1, 2)
    assert 0 < told["parameters_before"] < told["parameters_after"]
    newest = SnapshotStore(state / "snapshots").newest_whole().snapshot
    assert newest is not None
    assert newest.facts["decided_jobs"] == [f"expansion-{sequence}"]
    assert newest.offsets == SnapshotStore(state / "snapshots").entries()[-1].offsets
    # once more, of a network that has grown already: what comes now has no new class, so somebody names a base
    base = SnapshotStore(state / "snapshots").entries()[0].sequence
    file.write_text(file.read_text().replace("learner:\n", "learner:\n  restructuring: {most_sub_modules: 2}\n"))
    again = expand(stream_name, state, file, "--base", str(base))
    assert again.exit_code == 0, again.output
    assert "warning: the network has 2 sub-modules already; above learner.restructuring.most_sub_modules (2)" in (
        again.stderr
    )
    assert "warning" not in done.stderr
    assert "sub-modules: 2 before, 3 now" in again.stdout


@pytest.mark.kafka
def test_refusals_are_one_line_and_a_code_of_their_own(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    state, file = tmp_path / "state", settings_file(tmp_path, kafka_broker, SETTINGS + ANYTHING)
    send(kafka_broker, stream_name, 600)
    learn(stream_name, state, file)
    refused = expand(stream_name, state, file, "--lr", "1e30")
    assert refused.exit_code == 3
    assert refused.stderr.splitlines()[-1] == (
        "palimpsest: nothing is offered: the grown network's weights are not finite: lower expansion.learning_rate"
    )
    with pytest.raises(UserError, match="topic nowhere does not exist"):  # named, it is wanted
        expand(stream_name, state, file, "--unlabelled", "nowhere")
    with pytest.raises(UserError, match="holds no snapshot 99; there are "):
        expand(stream_name, state, file, "--base", "99")


@pytest.mark.kafka
def test_interrupted_it_exits_130_and_the_same_command_goes_on(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    settings = SETTINGS.replace("head_epochs: 10", "head_epochs: 2000") + ANYTHING
    state, file = tmp_path / "state", settings_file(tmp_path, kafka_broker, settings)
    send(kafka_broker, stream_name, 600)
    learn(stream_name, state, file)
    sequence = SnapshotStore(state / "snapshots").entries()[-1].sequence
    given = ["--stream", stream_name, "--state", state, "--settings", file, "--epochs", "2"]
    with Running("expand", *given) as running:
        running.wait_for(lambda _: any((state / "jobs").glob("expansion-*/*")))
        running.signal(signal.SIGINT)
        assert running.end() == 130
        assert running.lines[-1] == "stopped; the same command goes on from here"
    send(kafka_broker, stream_name, 60, seed=1)
    learn(stream_name, state, file)
    done = palimpsest("expand", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"expansion-{sequence} is offered"), "what it began with"
    assert [path.name for path in (state / "jobs").iterdir()] == ["lock"]


def test_a_folder_without_snapshots_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no snapshots; `palimpsest learn"):
        CliRunner().invoke(command, ["--stream", "s", "--state", str(tmp_path)], catch_exceptions=False)
