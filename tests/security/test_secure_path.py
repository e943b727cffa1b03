"""The whole path over SASL_SSL with SCRAM-SHA-512, by users who may do what `needed_acls` says and no more."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kafka import TopicPartition

from consumers import kafka_connection, topics
from consumers.acls import Acl
from consumers.needed_acls import needed_acls
from deploy.commands.dead_letters import command as dead_letters
from deploy.commands.erase import command as erase
from deploy.learning import open_learner
from deploy.settings import load_settings
from model_store.mlflow_registry import MlflowRegistry
from model_store.served_versions import RoleFile, ServedVersion
from pipeline.user_error import UserError
from tests.deploy.command_line import events, palimpsest
from tests.ended_transactions import wait_until_transactions_ended
from tests.model_store.tiny_servable import payload, request, tiny_classifier
from tests.secure_kafka import SecureBroker
from tests.security.secure_learner import learn, send_digits, settings_file

pytestmark = pytest.mark.kafka


def values_of(secure: SecureBroker, topic: str) -> list[bytes | None]:
    """All committed records of a topic with one partition."""
    wait_until_transactions_ended(secure.plain, topic)
    with kafka_connection.consumer(secure.plain) as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end = consumer.end_offsets([partition])[partition]
        values: list[bytes | None] = []
        deadline = time.monotonic() + 30
        while consumer.position(partition) < end:
            assert time.monotonic() < deadline
            values += [record.value for records in consumer.poll(100).values() for record in records]
        return values


def test_produce_learn_dead_letter_event_and_resume(
    secure_broker: SecureBroker, stream_name: str, tmp_path: Path
) -> None:
    producer, learner = f"{stream_name}-producer", f"{stream_name}-learner"
    secure_broker.make_user(producer, needed_acls("producer", stream_name))
    secure_broker.make_user(learner, needed_acls("learner", stream_name))
    send_digits(stream_name, settings_file(tmp_path, secure_broker, producer), 120)
    with kafka_connection.producer(secure_broker.sasl()) as ann:
        ann.send(topics.samples(stream_name), b"no image", headers=[("content-type", b"image/png")])
        ann.flush()

    settings, state = settings_file(tmp_path, secure_broker, learner), tmp_path / "state"
    first = learn(stream_name, state, settings)
    assert first.returncode == 0, first.stderr
    told = events(first.stderr)
    assert (told[0]["event"], told[0]["resumed"]) == ("started", False)
    assert (told[-1]["event"], told[-1]["records"]) == ("stopped", 121)
    assert len(list((state / "snapshots").glob("0*"))) > 0
    assert values_of(secure_broker, topics.dead_letters(stream_name)) == [b"no image"]
    happened = [json.loads(value or b"") for value in values_of(secure_broker, topics.events(stream_name))]
    assert happened != []

    send_digits(stream_name, settings_file(tmp_path, secure_broker, producer), 50, seed=1)
    second = learn(stream_name, state, settings)
    assert second.returncode == 0, second.stderr
    told = events(second.stderr)
    assert (told[0]["resumed"], told[0]["records_consumed"], told[-1]["records"]) == (True, 121, 50)
    assert len(values_of(secure_broker, topics.dead_letters(stream_name))) == 1, "told once"

    # Somebody else sends the dead letter back; an erasure stands in the learner's place for a moment.
    sender = f"{stream_name}-sender"
    secure_broker.make_user(sender, needed_acls("dead-letters", stream_name))
    sent = CliRunner().invoke(
        dead_letters,
        ["replay", "--stream", stream_name, "--settings", str(settings_file(tmp_path, secure_broker, sender))],
        catch_exceptions=False,
    )
    assert sent.exit_code == 0, sent.output
    assert values_of(secure_broker, topics.samples(stream_name))[-1] == b"no image"
    gone = CliRunner().invoke(
        erase,
        ["--stream", stream_name, "--state", str(state), "--subject", "nobody", "--settings", str(settings)],
        catch_exceptions=False,
    )
    assert gone.exit_code == 0, gone.output


def asked_of(secure_broker: SecureBroker, stream_name: str) -> None:
    """A topic of requests with one of them, and the stream's other topics."""
    topics.ensure_source_topics(secure_broker.plain, stream_name)
    topics.ensure_report_topics(secure_broker.plain, stream_name)
    asked = topics.requests(stream_name)
    with kafka_connection.admin(secure_broker.plain) as admin:
        admin.create_topics({asked: {"num_partitions": 1, "replication_factor": 1}})
        admin.wait_for_topics([asked])
    with kafka_connection.producer(secure_broker.sasl()) as ann:
        ann.send(asked, payload(0.0, 1.0), headers=[("ce_id", b"one"), ("content-type", b"application/x-npy")])
        ann.flush()


def test_a_predictor_of_either_role(
    secure_broker: SecureBroker, stream_name: str, tracking_uri: str, tmp_path: Path
) -> None:
    asked_of(secure_broker, stream_name)
    registry = MlflowRegistry(tracking_uri)
    registry.register(request(tmp_path / "servable", stream=stream_name))
    registry.set_alias(stream_name, "champion", 1)
    user = f"{stream_name}-predict"
    secure_broker.make_user(user, needed_acls("predict", stream_name))
    usual = ["--stream", stream_name, "--settings", settings_file(tmp_path, secure_broker, user), "--port", 0]
    usual += ["--models", tmp_path / "models", "--tracking-uri", tracking_uri, "--until-idle", 1]
    for role, topic in (("champion", topics.predictions(stream_name)), ("challenger", topics.shadow(stream_name))):
        done = palimpsest("predict", *usual, "--role", role)
        assert done.returncode == 0, done.stderr
        (answer,) = (json.loads(value or b"") for value in values_of(secure_broker, topic))
        assert (answer["label"], answer["role"]) == ("köln", role)
        told = [line["event"] for line in events(done.stderr) if line["event"] != "answered"]  # by the clock
        assert told == ["started", "serving", "stopped"], done.stderr


@pytest.mark.parametrize(
    ("resource", "name", "operation"),
    [
        ("transactional-id", ".champion.", "Write"),
        ("group", ".champion", "Read"),
        ("topic", ".requests", "Read"),
        ("topic", ".predictions", "Write"),
    ],
)
def test_a_predictor_without_one_acl_names_it(
    secure_broker: SecureBroker, stream_name: str, tmp_path: Path, resource: str, name: str, operation: str
) -> None:
    asked_of(secure_broker, stream_name)
    acls = needed_acls("predict", stream_name)
    secure_broker.make_user(stream_name, without(acls, resource, name, operation))
    file = settings_file(tmp_path, secure_broker, stream_name)
    servable = tmp_path / "models" / "versions" / "1-made"
    tiny_classifier().save(servable)
    (servable / "servable.sha256").write_text(hashlib.sha256((servable / "servable.json").read_bytes()).hexdigest())
    known = RoleFile(stream=stream_name, served=ServedVersion(version=1, run_id=None, name="1-made"))
    (tmp_path / "models" / "champion.json").write_text(known.model_dump_json())
    done = palimpsest(
        "predict", "--stream", stream_name, "--settings", file, "--models", tmp_path / "models", "--port", 0,
        "--tracking-uri", f"sqlite:///{tmp_path / 'none.db'}", "--until-idle", 30,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"{operation} on {resource} " in last
    assert name.strip(".") in last


def without(acls: tuple[Acl, ...], resource: str, name: str, operation: str) -> list[Acl]:
    left = [
        acl
        for acl in acls
        if not (acl.resource == resource and acl.name.endswith(name) and operation in acl.operations)
    ]
    (gone,) = set(acls) - set(left)
    rest = tuple(other for other in gone.operations if other != operation)
    # Describe comes with Read and Write; without it a topic is not to be seen at all.
    return [*left, replace(gone, operations=(*rest, "Describe"), why="")]


@pytest.mark.parametrize(
    ("resource", "name", "operation"),
    [
        ("transactional-id", ".learner", "Write"),
        ("group", ".learner", "Read"),
        ("topic", ".samples", "Read"),
        ("topic", ".dead-letters", "Write"),
        ("topic", ".events", "Write"),
    ],
)
def test_a_learner_without_one_acl_names_it_at_its_start(
    secure_broker: SecureBroker, stream_name: str, tmp_path: Path, resource: str, name: str, operation: str
) -> None:
    acls = needed_acls("learner", stream_name)
    secure_broker.make_user(stream_name, without(acls, resource, name, operation))
    topics.ensure_source_topics(secure_broker.plain, stream_name)
    topics.ensure_report_topics(secure_broker.plain, stream_name)
    with kafka_connection.producer(secure_broker.sasl()) as ann:
        ann.send(topics.samples(stream_name), b"no image", headers=[("content-type", b"image/png")])
        ann.flush()
    file = settings_file(tmp_path, secure_broker, stream_name)
    began = time.monotonic()
    with (
        pytest.raises(UserError) as raised,
        open_learner(stream=stream_name, state=tmp_path / "state", settings=load_settings(file)),
    ):
        pass
    line = str(raised.value)
    (full,) = [acl.name for acl in acls if acl.resource == resource and acl.name.endswith(name)
               and operation in acl.operations]  # fmt: skip
    assert f"{operation} on {resource} {full}" in line
    assert f"--operation {operation} --{resource} {full}" in line, "the way out can be copied"
    assert time.monotonic() - began < 90
    assert not list((tmp_path / "state").glob("snapshots/0*"))


def test_a_refusal_at_the_start_is_one_line(secure_broker: SecureBroker, stream_name: str, tmp_path: Path) -> None:
    """Also of the one that kafka-python would complain of in its own words first."""
    acls = needed_acls("learner", stream_name)
    secure_broker.make_user(stream_name, without(acls, "transactional-id", ".learner", "Write"))
    topics.ensure_source_topics(secure_broker.plain, stream_name)
    topics.ensure_report_topics(secure_broker.plain, stream_name)
    ended = learn(stream_name, tmp_path / "state", settings_file(tmp_path, secure_broker, stream_name))
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("palimpsest: the brokers do not allow this user Write on transactional-id ")


def refused(secure: SecureBroker, folder: Path, **kafka: Any) -> str:
    """The one line with which a learner ends that is not let in."""
    began = time.monotonic()
    ended = learn("nothing", folder / "state", settings_file(folder, secure, "ann", connect_timeout_seconds=2, **kafka))
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert time.monotonic() - began < 90, "not tried again for ever"
    (line,) = ended.stderr.splitlines()
    assert line.startswith("palimpsest: ")
    return line


def test_a_wrong_password(secure_broker: SecureBroker, tmp_path: Path) -> None:
    secure_broker.make_user("ann-of-scram")
    line = refused(secure_broker, tmp_path, sasl_plain_username="ann-of-scram", sasl_plain_password="incorrect-horse")
    assert "authentication" in line
    assert "SCRAM-SHA-512 as 'ann-of-scram'; check the user name, the password" in line
    assert "incorrect-horse" not in line


def test_an_authority_that_is_not_known(secure_broker: SecureBroker, tmp_path: Path) -> None:
    line = refused(secure_broker, tmp_path, ssl_cafile=str(secure_broker.stranger.cafile))
    assert "is not trusted" in line
    assert "set ssl_cafile to the authority that signed it" in line


def test_a_certificate_that_has_ended(secure_broker: SecureBroker, tmp_path: Path) -> None:
    line = refused(secure_broker, tmp_path, bootstrap_servers=f"127.0.0.1:{secure_broker.ended_port}")
    assert "certificate has expired" in line
    assert "have it renewed" in line


def test_a_certificate_for_another_host(secure_broker: SecureBroker, tmp_path: Path) -> None:
    line = refused(secure_broker, tmp_path, bootstrap_servers=f"localhost:{secure_broker.sasl_port}")
    assert "localhost" in line
    assert "set the name in bootstrap_servers" in line
