"""`palimpsest report`: one file of a state and its events, whatever is missing said in it, the state untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.commands.report import command
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.user_error import UserError
from tests.consumers.learner_world import STREAM, World
from tests.consumers.page.learnt_digits import learnt
from tests.deploy.report_file import embedded
from tests.deploy.streams import learn, send, settings_file

NOWHERE = ("--bootstrap-servers", "127.0.0.1:1")


@pytest.fixture(autouse=True)
def _nobody_waits_for_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_KAFKA__CONNECT_TIMEOUT_SECONDS", "0.2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return learnt(tmp_path_factory.mktemp("digits"))


def report(*arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)])


def refusal(*arguments: object) -> str:
    result = report(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_brokers_all_but_the_events_is_there(world: World, tmp_path: Path) -> None:
    before, out = content(world.folder), tmp_path / "new" / "report.html"
    result = report("--state", world.folder, "--out", out, *NOWHERE)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("events are missing: ")
    way_out = "Make the report again when the brokers at 127.0.0.1:1 answer, or give others with --bootstrap-servers."
    assert result.stderr.endswith(f"{way_out}\n")
    told = embedded(out)
    assert told["events"]["problem"] in result.stderr
    newest = world.newest_entry()
    assert told["snapshot"]["sequence"] == newest.sequence
    assert told["records"] == newest.facts["records_consumed"]
    assert told["course"]["at"]
    name = f"{newest.generation}-{newest.sequence}"
    assert result.stdout.startswith(f"{out}: stream {STREAM}, snapshot {name} after {told['records']:,} records; ")
    assert content(world.folder) == before, "it is only read"


def test_an_older_snapshot_and_a_baseline(world: World, tmp_path: Path) -> None:
    out, first = tmp_path / "report.html", world.store.entries()[0]
    plain = learnt(tmp_path / "plain", retention={}).folder
    result = report("--state", world.folder, "--out", out, "--snapshot", first.sequence, "--baseline", plain, *NOWHERE)
    assert result.exit_code == 0, result.output
    told = embedded(out)
    assert told["records"] == first.facts["records_consumed"]
    assert told["baseline"]["title"] == "no retention"
    assert told["baseline"]["course"]["at"]


def test_a_state_of_which_nothing_was_evaluated_yet(tmp_path: Path) -> None:
    world = World(tmp_path)
    process = world.process()
    process.start()
    process._checkpoints.commit_now(at_any_rate=True)
    out = tmp_path / "report.html"
    result = report("--state", tmp_path, "--out", out, *NOWHERE)
    assert result.exit_code == 0, result.output
    assert "; 0 evaluations of 0 classes, 0 events" in result.stdout
    assert embedded(out)["evaluated"] is None


def test_what_is_wrong_is_one_line_with_the_way_out(world: World, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    nothing = tmp_path / "nothing"
    nowhere = f"{nothing} holds no whole snapshot; `palimpsest learn --state {nothing}` writes them"
    assert refusal("--state", nothing, "--out", out) == nowhere
    assert refusal("--state", world.folder, "--out", out, "--baseline", nothing) == nowhere
    assert "holds no snapshot 99; there is" in refusal("--state", world.folder, "--out", out, "--snapshot", 99)
    assert "'newest' is not SEQUENCE or" in refusal("--state", world.folder, "--out", out, "--snapshot", "newest")
    assert not out.exists()
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "report.html"
    assert refusal("--state", world.folder, "--out", inside, *NOWHERE).startswith(f"cannot write {inside}: ")


def test_another_branch_tells_no_events_and_asks_no_brokers(tmp_path: Path) -> None:
    world = World(tmp_path / "state")
    world.write(())
    process = world.process(branch="what-if")
    process.start()
    process._checkpoints.commit_now(at_any_rate=True)
    result = report("--state", world.folder, "--out", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert result.stderr == "events are missing: branch 'what-if' tells none, only 'main' does.\n"


@pytest.mark.kafka
def test_with_the_events_of_the_stream(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PALIMPSEST_KAFKA__CONNECT_TIMEOUT_SECONDS")
    send(kafka_broker, stream_name, 300)
    file = settings_file(tmp_path, kafka_broker, "registry: {enabled: false}\n")
    learn(stream_name, tmp_path / "state", file)
    out = tmp_path / "report.html"
    result = report("--state", tmp_path / "state", "--out", out, "--settings", file)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    told = embedded(out)
    assert told["events"]["problem"] is None
    new = {line["text"] for line in told["events"]["lines"] if line["kind"] == "new_class"}
    assert new == {f"class {entry['name']} is new" for entry in told["classes"]}


@pytest.mark.kafka
def test_brokers_that_do_not_have_the_stream(
    kafka_broker: EmbeddedKafka, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PALIMPSEST_KAFKA__CONNECT_TIMEOUT_SECONDS")
    result = report(
        "--state", world.folder, "--out", tmp_path / "r.html", "--bootstrap-servers", kafka_broker.bootstrap_servers
    )
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("events are missing: there is no topic ")
