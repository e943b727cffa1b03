"""`palimpsest check`: what is well, what is not, and that it only looks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from consumers import kafka_connection, topics
from consumers.commit_log import transactional_id
from consumers.needed_acls import needed_acls
from deploy.commands.check import command
from deploy.embedded_kafka import EmbeddedKafka
from deploy.installation_check import check_installation, check_registry
from tests.deploy.command_line import palimpsest
from tests.deploy.streams import kafka, send, settings_file
from tests.secure_kafka import SecureBroker

Found = dict[str, dict[str, Any]]


def check(*arguments: object) -> tuple[int, Found]:
    """The exit code, and the facts by their names."""
    done = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    document = json.loads(done.stdout)
    assert document["healthy"] is (done.exit_code == 0)
    return done.exit_code, {fact["name"]: fact for fact in document["facts"]}


def problems(facts: Found) -> dict[str, str]:
    return {name: fact["way_out"] for name, fact in facts.items() if fact["verdict"] == "problem"}


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.kafka
def test_a_healthy_learner_is_looked_at_and_left_alone(
    kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path
) -> None:
    send(kafka_broker, stream_name, 50)
    settings, state = settings_file(tmp_path, kafka_broker, "registry: {enabled: false}\n"), tmp_path / "state"
    learnt = palimpsest("learn", "--stream", stream_name, "--state", state, "--settings", settings, "--until-idle", 0.2)
    assert learnt.returncode == 0, learnt.stderr
    group = transactional_id(stream_name, "main")
    with kafka_connection.admin(kafka(kafka_broker)) as admin:
        committed, files = admin.list_group_offsets({group: None}), contents(state)
        code, facts = check("--stream", stream_name, "--state", state, "--settings", settings)
        assert admin.list_group_offsets({group: None}) == committed, "it claims nothing"
    assert contents(state) == files
    assert (code, problems(facts)) == (0, {})
    samples = topics.samples(stream_name)
    assert facts[f"{samples}-0 lag"]["value"] == "0 (committed 50)"
    assert facts[f"{samples} records"]["value"] == "50 offsets"
    assert facts[f"{samples} copies"]["verdict"] == "warning", "one broker is one disk"
    assert facts["cluster id"]["value"] == kafka_broker.cluster_id
    assert facts["belongs to"]["value"] == f"stream {stream_name}, branch main"
    assert "50 records" in facts["newest whole snapshot"]["value"]
    assert facts["log after the newest snapshot"]["value"] == "still there"

    send(kafka_broker, stream_name, 20, seed=1)
    other = tmp_path / "other"
    code, facts = check("--stream", stream_name, "--state", other, "--settings", settings)
    assert (code, facts[f"{samples}-0 lag"]["value"], other.exists()) == (0, "20 (committed 50)", False)

    # The same for a person: every fact a line, and the way out below what is not well.
    done = CliRunner().invoke(command, ["--stream", stream_name, "--settings", str(settings)])
    assert done.exit_code == 0
    assert f"{samples} cleanup.policy" in done.stdout
    assert "-> a broker's disk that is lost takes the log along" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("problems: 0, warnings: ")


@pytest.mark.kafka
def test_topics_that_a_learner_cannot_live_with(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    samples, dead_letters = topics.samples(stream_name), topics.dead_letters(stream_name)
    with kafka_connection.admin(kafka(kafka_broker)) as admin:
        shape = {"num_partitions": 2, "replication_factor": 1}
        compacted = {"cleanup.policy": "compact", "unclean.leader.election.enable": "true", "min.insync.replicas": "2"}
        admin.create_topics({samples: shape | {"configs": compacted}})
        small = {"max.message.bytes": "1000", "retention.ms": "3600000"}
        admin.create_topics({dead_letters: shape | {"configs": small}})
        admin.wait_for_topics([samples, dead_letters])
    code, facts = check("--stream", stream_name, "--bootstrap-servers", kafka_broker.bootstrap_servers)
    assert code == 1
    ways_out = problems(facts)
    assert set(ways_out) == {
        f"{samples} cleanup.policy",
        f"{samples} unclean.leader.election.enable",
        f"{samples} copies",
        f"{dead_letters} max.message.bytes",
    }
    assert f"--alter --topic {samples} --add-config cleanup.policy=delete" in ways_out[f"{samples} cleanup.policy"]
    assert (
        f"--topic {dead_letters} --add-config max.message.bytes=67108864"
        in ways_out[f"{dead_letters} max.message.bytes"]
    )
    assert facts[f"{dead_letters} retention"]["verdict"] == "warning"
    assert facts[f"{samples} partitions"]["value"] == "2"
    assert "a learner makes it" in facts[topics.events(stream_name)]["value"]


@pytest.mark.kafka
def test_retention_that_overtook_the_learner(kafka_broker: EmbeddedKafka, stream_name: str, tmp_path: Path) -> None:
    from kafka import TopicPartition

    send(kafka_broker, stream_name, 50)
    settings, state = settings_file(tmp_path, kafka_broker, "registry: {enabled: false}\n"), tmp_path / "state"
    learnt = palimpsest("learn", "--stream", stream_name, "--state", state, "--settings", settings, "--max-records", 30)
    assert learnt.returncode == 0, learnt.stderr
    samples = topics.samples(stream_name)
    with kafka_connection.admin(kafka(kafka_broker)) as admin:
        admin.delete_records({TopicPartition(samples, 0): 45})
    code, facts = check("--stream", stream_name, "--state", state, "--settings", settings)
    assert code == 1
    assert set(problems(facts)) == {f"{samples}-0 lag", "log after the newest snapshot"}
    for way_out in problems(facts).values():
        assert "--accept-gap" in way_out


@pytest.mark.kafka
def test_a_topic_that_is_not_there(kafka_broker: EmbeddedKafka, stream_name: str) -> None:
    code, facts = check("--stream", stream_name, "--bootstrap-servers", kafka_broker.bootstrap_servers)
    assert code == 1
    assert problems(facts) == {
        topics.samples(stream_name): f"make it with `palimpsest produce --stream {stream_name}`, or check --stream"
    }
    with kafka_connection.admin(kafka(kafka_broker)) as admin:
        assert not [name for name in admin.list_topics() if name.startswith(stream_name)], "it makes nothing"


def test_no_broker_is_one_problem(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("kafka: {bootstrap_servers: '127.0.0.1:1', connect_timeout_seconds: 0.3}\n")
    code, facts = check("--stream", "digits", "--settings", file)
    assert code == 1
    assert "no broker is reachable at 127.0.0.1:1" in problems(facts)["reachable"]


def test_a_wrong_name_is_no_finding_but_an_error() -> None:
    done = palimpsest("check", "--stream", "a/b")
    assert (done.returncode, done.stdout) == (2, "")
    assert "choose another --stream" in done.stderr


# What this user may do


@pytest.fixture(scope="module")
def secure_stream(secure_broker: SecureBroker) -> str:
    stream = "checked"
    topics.ensure_source_topics(secure_broker.plain, stream)
    topics.ensure_report_topics(secure_broker.plain, stream)
    return stream


def as_user(secure: SecureBroker, folder: Path, user: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump({"kafka": secure.section("SCRAM-SHA-512", user), "registry": {"enabled": False}}))
    return file


@pytest.mark.kafka
def test_whoever_may_only_look_sees_all_but_the_rights_of_a_learner(
    secure_broker: SecureBroker, secure_stream: str, tmp_path: Path
) -> None:
    secure_broker.make_user("looks", needed_acls("check", secure_stream))
    code, facts = check("--stream", secure_stream, "--settings", as_user(secure_broker, tmp_path, "looks"))
    assert code == 1
    read = f"Read and DescribeConfigs on topic {secure_stream}.samples"
    assert facts[read]["value"] == "missing"
    assert f"--operation Read --topic {secure_stream}.samples" in facts[read]["way_out"]
    assert "DescribeConfigs" not in facts[read]["way_out"], "that one is there"
    assert {facts[name]["part"] for name in problems(facts)} == {"acls"}
    assert [fact for fact in facts.values() if fact["value"].startswith("not to be seen")] == []


@pytest.mark.kafka
def test_a_learner_with_its_acls_has_them(secure_broker: SecureBroker, secure_stream: str, tmp_path: Path) -> None:
    """It may not see the brokers' own settings, and is told so; nothing else is wrong."""
    secure_broker.make_user("learns", needed_acls("learner", secure_stream))
    code, facts = check("--stream", secure_stream, "--settings", as_user(secure_broker, tmp_path, "learns"))
    assert (code, problems(facts)) == (0, {})
    assert facts["settings"]["value"] == "not to be seen"
    assert (facts["way in"]["value"], facts["way in"]["verdict"]) == ("SASL_SSL, SCRAM-SHA-512 as learns", "ok")
    told = {name: fact["value"] for name, fact in facts.items() if fact["part"] == "acls"}
    assert told.pop(f"Write on transactional-id palimpsest.{secure_stream}.main.learner") == "not told by the brokers"
    assert told.pop(f"Read on group palimpsest.{secure_stream}.main.learner") == "not told by the brokers"
    assert set(told.values()) == {"there"}
    assert len(told) == 3


@pytest.mark.kafka
def test_a_way_in_that_anybody_could_listen_to(
    secure_broker: SecureBroker, kafka_broker: EmbeddedKafka, secure_stream: str, tmp_path: Path
) -> None:
    port = kafka_broker.bootstrap_servers.rpartition(":")[2]
    _, facts = check("--stream", secure_stream, "--bootstrap-servers", f"127.0.0.2:{port},127.0.0.1:{port}")
    assert "set kafka.security_protocol to SASL_SSL" in facts["way in"]["way_out"]
    file = as_user(secure_broker, tmp_path, "ann")
    values = yaml.safe_load(file.read_text())
    values["kafka"] |= {"sasl_mechanism": "PLAIN", "ssl_check_hostname": False}
    file.write_text(yaml.safe_dump(values))
    _, facts = check("--stream", secure_stream, "--settings", file)
    assert "set kafka.ssl_check_hostname to true" in facts["way in"]["way_out"]


@pytest.mark.kafka
def test_who_may_do_nothing(secure_broker: SecureBroker, secure_stream: str, tmp_path: Path) -> None:
    secure_broker.make_user("nobody")
    code, facts = check("--stream", secure_stream, "--settings", as_user(secure_broker, tmp_path, "nobody"))
    assert code == 1
    assert "Describe" in problems(facts)[f"{secure_stream}.samples"]
    assert facts[f"palimpsest.{secure_stream}.main.learner"]["value"] == "not to be seen"


# This machine


def test_versions_are_there() -> None:
    facts = {fact.name: fact for fact in check_installation()}
    assert {fact.verdict for fact in facts.values()} == {"ok"}
    assert {"python", "palimpsest", "torch", "kafka-python", "mlflow", "crc32c"} <= set(facts)


@pytest.fixture
def server() -> Iterator[tuple[str, list[int]]]:
    """An MLflow server's health, with the answer that stands first in the list."""
    answers = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers[0] if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", answers
        http.shutdown()
        thread.join()


def test_an_mlflow_that_answers_and_one_that_is_ill(server: tuple[str, list[int]]) -> None:
    uri, answers = server
    for answer, verdict in ((200, "ok"), (401, "ok"), (503, "warning")):
        answers[0] = answer
        (fact,) = check_registry(f"{uri}/")
        assert fact.verdict == verdict, fact


@pytest.mark.parametrize(
    ("uri", "verdict", "value"),
    [
        ("http://127.0.0.1:1", "warning", "does not answer"),
        ("http://ann:secret@127.0.0.1:1", "warning", "ann:***@"),
        ("postgresql://ann:secret@host/db", "ok", "not tried"),
        ("carrier-pigeon://roof", "problem", "carrier-pigeon"),
        (None, "ok", "give --state"),
    ],
)
def test_where_mlflow_is(uri: str | None, verdict: str, value: str) -> None:
    (fact,) = check_registry(uri)
    assert fact.verdict == verdict
    assert value in fact.value
    assert "secret" not in fact.value + fact.way_out
