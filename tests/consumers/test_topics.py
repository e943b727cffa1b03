"""Names, creation, and what is refused."""

from __future__ import annotations

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from consumers import kafka_connection, topics
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.record import Partition
from pipeline.user_error import UserError
from tests.deleted_topic import delete_topic


def test_names_are_those_of_the_design() -> None:
    assert [topics.samples("s"), topics.unlabelled("s"), topics.predictions("s")] == [
        "s.samples",
        "s.unlabelled",
        "s.predictions",
    ]
    assert [topics.events("s"), topics.dead_letters("s")] == ["s.events", "s.dead-letters"]


@pytest.mark.parametrize("name", ["digits", "a", "A.b_c-9", "x" * 235])
def test_good_stream_names(name: str) -> None:
    assert topics.check_stream_name(name) == name
    assert len(topics.dead_letters(name)) <= 249


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "ä", "x" * 236, "a\n", "a:b"])
def test_bad_stream_names_are_said_to_be(name: str) -> None:
    with pytest.raises(UserError, match="stream name") as raised:
        topics.samples(name)
    assert "\n" not in str(raised.value)


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> KafkaSettings:
    broker: EmbeddedKafka = request.getfixturevalue("kafka_broker")
    return KafkaSettings(bootstrap_servers=broker.bootstrap_servers)


def configs(settings: KafkaSettings, topic: str) -> dict[str, str]:
    with kafka_connection.admin(settings) as admin:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
    return {name: entry["value"] for name, entry in found["topic"][topic].items()}


@pytest.mark.kafka
def test_topics_are_made_once_and_then_left_alone(settings: KafkaSettings, stream_name: str) -> None:
    topics.ensure_source_topics(settings, stream_name, partitions=3)
    topics.ensure_report_topics(settings, stream_name)
    before = topics.check_samples_topic(settings, stream_name)
    topics.ensure_source_topics(settings, stream_name, partitions=7)
    topics.ensure_report_topics(settings, stream_name)
    assert topics.check_samples_topic(settings, stream_name) == before
    name = topics.samples(stream_name)
    assert before.partitions == (Partition(name, 0), Partition(name, 1), Partition(name, 2))
    for kept in (topics.events(stream_name), topics.dead_letters(stream_name)):
        found = configs(settings, kept)
        assert (found["cleanup.policy"], found["retention.ms"], found["retention.bytes"]) == ("delete", "-1", "-1")
    assert int(configs(settings, topics.dead_letters(stream_name))["max.message.bytes"]) == 64 * 1024 * 1024


@pytest.mark.kafka
def test_a_topic_made_anew_has_another_id_on_the_same_cluster(settings: KafkaSettings, stream_name: str) -> None:
    topics.ensure_source_topics(settings, stream_name)
    before = topics.check_samples_topic(settings, stream_name)
    delete_topic(settings, topics.samples(stream_name))
    topics.ensure_source_topics(settings, stream_name)
    after = topics.check_samples_topic(settings, stream_name)
    assert before.cluster_id == after.cluster_id
    assert before.topic_id != after.topic_id
    assert len(before.topic_id) == 36


@pytest.mark.kafka
def test_a_missing_topic_names_the_way_out(settings: KafkaSettings, stream_name: str) -> None:
    topics.ensure_source_topics(settings, stream_name)
    mistyped = stream_name[:-1] + "-"
    with pytest.raises(UserError, match=f"palimpsest produce --stream {mistyped}") as raised:
        topics.check_samples_topic(settings, mistyped)
    assert f"there is {stream_name}" in str(raised.value)
    with kafka_connection.admin(settings) as admin:
        assert topics.samples(mistyped) not in admin.list_topics()  # asking has not made it


@pytest.mark.kafka
@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_a_compacted_topic_is_refused(settings: KafkaSettings, stream_name: str, policy: str) -> None:
    with kafka_connection.admin(settings) as admin:
        admin.create_topics(
            {topics.samples(stream_name): {"configs": {"cleanup.policy": policy}}}, wait_for_metadata=True
        )
    with pytest.raises(UserError, match="compacted"):
        topics.check_samples_topic(settings, stream_name)


@pytest.mark.kafka
def test_a_dead_letters_topic_that_takes_small_ones_only_is_said_to_at_once(
    settings: KafkaSettings, stream_name: str
) -> None:
    name = topics.dead_letters(stream_name)
    with kafka_connection.admin(settings) as admin:
        # What a topic has that nobody thought about, on brokers as they come.
        shape = {"num_partitions": 1, "configs": {"max.message.bytes": "1048588"}}
        admin.create_topics({name: shape}, wait_for_metadata=True)
    with pytest.raises(UserError, match=r"max\.message\.bytes=1048588") as raised:
        topics.ensure_report_topics(settings, stream_name)
    way_out = f"kafka-configs.sh --bootstrap-server {settings.bootstrap_servers} --alter --topic {name} --add-config"
    assert way_out in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.kafka
def test_more_replicas_than_brokers_is_a_users_error(settings: KafkaSettings, stream_name: str) -> None:
    with pytest.raises(UserError, match="InvalidReplicationFactorError"):
        topics.ensure_source_topics(settings, stream_name, replication=3)
