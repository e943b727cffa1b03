"""`palimpsest promote`, `rollback` and `models` on a real broker and a real MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.commands import models, promote, rollback
from deploy.embedded_kafka import EmbeddedKafka
from deploy.exit_codes import exit_code, one_line
from deploy.local_port import free_port
from model_store.mlflow_registry import MlflowRegistry
from model_store.promotion_history import PROMOTIONS_TAG
from model_store.registry import SUPERSEDED_BY_TAG
from tests.consumers.learner_world import STREAM
from tests.consumers.versions_world import register
from tests.deploy.command_line import palimpsest
from tests.deploy.promotion_world import good, learnt_state, untrained
from tests.deploy.streams import events, learn, send, settings_file
from tests.model_store.tiny_servable import tiny_classifier

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

# All but the average accuracy is of no account: what a short stream forgets, and what a loaded machine is slow at.
LENIENT = (
    "promotion: {min_class_samples: 2, worst_class_margin: 1, forgetting_margin: 1, calibration_margin: 1, "
    "latency_ratio: 1000}\n"
)
COMMANDS = {"promote": promote.command, "rollback": rollback.command, "models": models.command}


def ends(name: str, *given: object) -> tuple[int, Result, str]:
    """(exit code, result, stderr): as deploy/cli.py ends it."""
    done = CliRunner().invoke(COMMANDS[name], [*map(str, given)])
    if isinstance(done.exception, Exception):
        code = exit_code(done.exception)
        assert code is not None, done.exception
        return code, done, one_line(done.exception)
    return done.exit_code, done, done.stderr


@pytest.mark.kafka
def test_promoted_refused_forced_rolled_back_and_listed(
    kafka_broker: EmbeddedKafka, stream_name: str, tracking_uri: str, tmp_path: Path
) -> None:
    send(kafka_broker, stream_name, 900)
    registered = f"registry: {{tracking_uri: '{tracking_uri}', every_records: 300}}\n"
    file, state = settings_file(tmp_path, kafka_broker, LENIENT + registered), tmp_path / "state"
    for _ in range(3):  # each ends with a version
        learn(stream_name, state, file, max_records=300)
    registry = MlflowRegistry(tracking_uri)
    newest = registry.versions(stream_name)[-1].version
    assert newest >= 3
    one, last = f"models:/{stream_name}/1", f"models:/{stream_name}/{newest}"
    usual = ["--stream", stream_name, "--settings", file]

    def aliases() -> dict[str, int]:
        found = {alias: registry.alias(stream_name, alias) for alias in ("champion", "previous")}
        return {alias: version.version for alias, version in found.items() if version is not None}

    # the first one, in a process of its own
    done = palimpsest("promote", *usual, "--version", "1", "--state", state, "--by", "ada")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["figure", "champion", "version", "1", "bound"]
    assert [line.split("  ")[0] for line in lines[1:8]] == [
        *("average accuracy", "worst class accuracy", "forgetting", "calibration error", "latency", "parameters"),
        "shadow accuracy",
    ]
    assert lines[8:] == ["there is no champion yet: the first version that answers passes", f"promoted {one}"]
    assert aliases() == {"champion": 1}

    # without hold-outs nothing speaks for another one
    code, _, said = ends("promote", *usual, "--version", "challenger")
    assert code == 3
    assert "nothing judges it: without --state there are no hold-outs" in said
    assert f"palimpsest: {last} is not promoted; --force promotes it all the same" in said

    code, result, said = ends(
        "promote",
        *usual,
        "--version",
        "challenger",
        "--state",
        state,
        "--by",
        "ada",
        "--json",
        tmp_path / "report.json",
    )
    assert (code, said) == (0, "")
    assert result.stdout.splitlines()[-1] == f"promoted {last}; previous is 1"
    assert aliases() == {"champion": newest, "previous": 1}
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["promoted"], report["event_told"]) == (True, True)
    assert report["verdict"]["checks"][0]["challenger"] > report["verdict"]["checks"][0]["champion"]
    code, result, _ = ends("promote", *usual, "--version", newest, "--state", state)
    assert (code, result.stdout) == (0, f"{last} is the champion already\n")

    # back to one that knows less: refused, and forced
    code, result, said = ends("promote", *usual, "--version", "1", "--state", state, "--by", "bob")
    assert code == 3
    assert said.startswith("the average accuracy goes from ")
    assert "FAILED" in result.stdout
    assert aliases() == {"champion": newest, "previous": 1}
    code, result, _ = ends("promote", *usual, "--version", "1", "--state", state, "--force", "--by", "bob")
    assert code == 0
    assert result.stdout.splitlines()[-1] == f"promoted {one}, against the gate; previous is {newest}"
    assert aliases() == {"champion": 1, "previous": newest}

    code, result, said = ends("rollback", *usual, "--by", "eve")
    assert (code, result.stdout, said) == (0, f"rolled back to {last}; previous is 1\n", "")
    assert aliases() == {"champion": newest, "previous": 1}

    # all of it stands in the events and in the tags
    told = events(kafka_broker, stream_name, "promoted")
    assert [(event["from"], event["to"], event["by"], event["forced"], event["rollback"]) for event in told] == [
        (None, 1, "ada", False, False),
        (1, newest, "ada", False, False),
        (newest, 1, "bob", True, False),
        (1, newest, "eve", False, True),
    ]
    assert told[1]["figures"]["average_accuracy"][1] > told[1]["figures"]["average_accuracy"][0]
    assert len({event["promotion"] for event in told}) == 4
    refused = events(kafka_broker, stream_name, "promotion_refused")
    assert [(event["from"], event["to"], event["by"]) for event in refused[1:]] == [(newest, 1, "bob")]
    tag = json.loads(registry.versions(stream_name)[-1].tags[PROMOTIONS_TAG])
    assert [(entry["from"], entry["by"], entry["stage"]) for entry in tag] == [(1, "ada", "told"), (1, "eve", "told")]

    code, result, _ = ends("models", *usual, "--limit", 1)
    assert code == 0
    header, *rows = result.stdout.splitlines()
    assert header.split()[:7] == ["version", "aliases", "trigger", "parent", "classes", "records", "accuracy"]
    assert [row.split()[0] for row in rows[:2]] == [str(newest), "1"], "and those in a role"
    assert "by eve (rolled back)" in rows[0]
    assert "by bob (forced)" in rows[1]
    assert rows[2] == f"{newest - 2} older ones are not shown (--limit)"
    code, result, _ = ends("models", *usual, "--json")
    listed = json.loads(result.stdout)
    assert [entry["version"] for entry in listed] == list(range(newest, 0, -1))
    assert listed[0]["aliases"] == ["challenger", "champion"]
    assert listed[0]["parent"] == newest - 1
    assert listed[0]["classes"] == 10
    assert 0 < listed[0]["average_accuracy"] <= 1
    assert [entry["by"] for entry in listed[-1]["promotions"]] == ["ada", "bob"]


@pytest.mark.kafka
def test_brokers_that_are_away_hear_of_it_when_it_is_run_again(
    kafka_broker: EmbeddedKafka, stream_name: str, tracking_uri: str, tmp_path: Path
) -> None:
    send(kafka_broker, stream_name, 30)
    file = settings_file(tmp_path, kafka_broker, "registry: {enabled: false}\n")
    learn(stream_name, tmp_path / "state", file)  # makes the topic
    registry = MlflowRegistry(tracking_uri)
    for classifier in (untrained(), good()):
        register(registry, tmp_path, classifier, stream_name)
    usual = ["--stream", stream_name, "--tracking-uri", tracking_uri, "--settings", file]
    away = ["--bootstrap-servers", f"127.0.0.1:{free_port()}"]
    short = tmp_path / "short.yaml"
    short.write_text("kafka: {connect_timeout_seconds: 1}\n")
    usual_away = [*usual[:-1], short, *away]

    code, result, said = ends("promote", *usual_away, "--version", "1")
    assert (code, result.stdout.splitlines()[-1]) == (6, f"promoted models:/{stream_name}/1")
    assert said.startswith("palimpsest: the event of the promotion is not told: no broker is reachable")
    assert said.endswith("it is told when the same command is run again\n")
    code, _, _ = ends("promote", *usual_away, "--version", "2", "--force")
    assert code == 6
    code, result, _ = ends("promote", *usual_away, "--version", "2")
    assert code == 6
    assert result.stdout.endswith("its event is still missing\n")
    code, result, said = ends("promote", *usual, "--version", "2")
    assert (code, said) == (0, "")
    assert result.stdout.startswith(f"models:/{stream_name}/2 is the champion already, by ")
    assert result.stdout.endswith("the event that was missing is told\n")
    assert [event["to"] for event in events(kafka_broker, stream_name, "promoted")] == [1, 2]


def test_what_the_user_can_put_right_is_one_line_and_code_2(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = MlflowRegistry(tracking_uri)
    register(registry, tmp_path, tiny_classifier(), "pets")
    usual = ["--stream", "pets", "--tracking-uri", tracking_uri]
    for name, given, code, says in (
        ("promote", [*usual, "--version", 9], 2, "models:/pets/9: model 'pets' has no version 9"),
        ("promote", [*usual, "--version", "best"], 2, "has no alias 'best'; its newest versions are 1"),
        ("promote", [*usual, "--version", "a/b"], 2, "names no version"),
        ("promote", [*usual, "--version", "1", "--state", tmp_path / "none"], 2, "holds no whole snapshot"),
        ("rollback", usual, 2, "'pets' has no champion to roll back from"),
        ("models", ["--stream", "dogs", "--tracking-uri", tracking_uri], 2, "there is no model 'dogs' in this MLflow"),
        ("models", ["--stream", "a/b", "--tracking-uri", tracking_uri], 2, "cannot name a model"),
    ):
        ended, _, said = ends(name, *given)
        assert (ended, says in said) == (code, True), said
    nowhere = f"http://127.0.0.1:{free_port()}"
    missing = f"sqlite:///{tmp_path}/none.db"
    more: dict[str, list[Any]] = {"promote": ["--version", "1"], "rollback": [], "models": []}
    for name, given in more.items():
        code, _, said = ends(name, "--stream", "pets", "--tracking-uri", nowhere, *given)
        assert (code, "the same command goes on from here once it answers" in said) == (6, True)
        code, _, said = ends(name, "--stream", "pets", "--tracking-uri", missing, *given)
        assert (code, f"there is no MLflow database {tmp_path}/none.db" in said) == (2, True)
    assert not (tmp_path / "none.db").exists()


def test_the_usual_state_judges_and_json_says_what_this_call_did(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = MlflowRegistry(tracking_uri)
    for classifier in (good(), good()):
        register(registry, tmp_path, classifier, STREAM)
    settings, report = tmp_path / "settings.yaml", tmp_path / "report.json"
    settings.write_text("kafka: {connect_timeout_seconds: 1}\n" + LENIENT)
    away = ["--settings", settings, "--bootstrap-servers", f"127.0.0.1:{free_port()}"]
    usual = ["--stream", STREAM, "--tracking-uri", tracking_uri, *away]

    # found out before anything is promoted
    code, _, said = ends("promote", *usual, "--version", 1, "--json", tmp_path / "none" / "report.json")
    assert (code, said) == (
        2,
        f"cannot write {tmp_path}/none/report.json: No such file or directory; give another --json",
    )
    assert registry.alias(STREAM, "champion") is None

    def told(*given: object) -> tuple[int, str, list[object]]:
        code, _, said = ends("promote", *usual, "--json", report, *given)
        document = json.loads(report.read_text())
        return code, said, [document[name] for name in ("promoted", "champion_before", "champion")]

    code, said, facts = told("--version", 1)  # its event waits for the brokers
    assert (code, facts) == (6, [True, None, 1])
    assert "--state is" not in said
    assert told("--version", 1)[::2] == (6, [False, 1, 1]), "it was the champion already"
    learnt_state(tmp_path / "runs" / STREAM)
    code, said, facts = told("--version", 2, "--force")
    assert (code, facts) == (6, [True, 1, 2])
    assert said.startswith(f"--state is runs/{STREAM}, since there is a state of '{STREAM}'\n")
    assert json.loads(report.read_text())["verdict"]["passed"]
    report.unlink()
    code, _, _ = ends("promote", *usual, "--version", 9, "--json", report)
    assert (code, report.exists()) == (2, False)

    # another stream's state is not taken for ours
    (tmp_path / "runs" / STREAM).rename(tmp_path / "runs" / "pets")
    register(registry, tmp_path, tiny_classifier(), "pets")
    code, _, said = ends("promote", "--stream", "pets", *usual[2:], "--version", 1)
    assert (code, "--state is" in said) == (6, False)


def test_what_could_not_be_served_is_not_forced(tracking_uri: str, tmp_path: Path) -> None:
    registry = MlflowRegistry(tracking_uri)
    for classifier in (good(), tiny_classifier()):
        register(registry, tmp_path, classifier, "pets")
    registry.set_tag("pets", 2, SUPERSEDED_BY_TAG, "3")
    registry.set_alias("pets", "champion", 1)
    settings = tmp_path / "settings.yaml"
    settings.write_text("kafka: {connect_timeout_seconds: 1}\n")
    servers = f"127.0.0.1:{free_port()}"
    code, _, said = ends(
        *("promote", "--stream", "pets", "--tracking-uri", tracking_uri, "--version", 2, "--force"),
        *("--settings", settings, "--bootstrap-servers", servers),
    )
    assert code == 3
    assert "models:/pets/2 takes vector of shape (2,), and the champion models:/pets/1 takes image" in said
    assert "warning: models:/pets/2 is superseded: what it learnt was learnt again since, by 3 and later" in said
    assert "is not promoted (--force does not help: it would serve nobody)" in said
    assert "the event of the refusal is not told: no broker is reachable" in said
    champion = registry.alias("pets", "champion")
    assert champion is not None
    assert champion.version == 1
