"""The topics of a stream: their names, their creation, and what must hold of the one that is learnt from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from consumers import kafka_connection
from consumers.acls import KAFKA_NAMES, Operation, refusal
from consumers.kafka_settings import KafkaSettings
from pipeline.record import Partition
from pipeline.user_error import UserError

# The branch that writes to the stream's topics and to the registry; another is a comparison that disturbs nothing.
MAIN_BRANCH = "main"
# A topic's name has at most 249 characters of these; the longest of our endings is taken off.
_STREAM_NAME = re.compile(r"[a-zA-Z0-9._-]{1,235}")
# Key, value and headers of a record that is sent on unchanged; of a larger one dead letters keep where it stood. A dead
# letter that the brokers refuse would hold up every commit after it, and a record's compression may hide any size.
DEAD_LETTER_RECORD_BYTES = 8 * 1024 * 1024
# Beside the record: the reason, and what the log adds.
DEAD_LETTER_TOPIC_NEEDS_BYTES = DEAD_LETTER_RECORD_BYTES + 256 * 1024
DEAD_LETTER_TOPIC_BYTES = 64 * 1024 * 1024
_FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}


def check_stream_name(stream: str) -> str:
    """The name itself. Raises `UserError` where Kafka would not take topics of that name."""
    if not _STREAM_NAME.fullmatch(stream) or stream in (".", ".."):
        raise UserError(
            f"stream name {stream!r} is not 1 to 235 letters, digits, '.', '_' and '-'; choose another --stream"
        )
    return stream


def samples(stream: str) -> str:
    """Labelled samples: what is learnt from."""
    return f"{check_stream_name(stream)}.samples"


def unlabelled(stream: str) -> str:
    """Samples without a label, for consolidation and expansion."""
    return f"{check_stream_name(stream)}.unlabelled"


def requests(stream: str) -> str:
    """Samples without a label that a predictor is asked about."""
    return f"{check_stream_name(stream)}.requests"


def predictions(stream: str) -> str:
    """What the predictors answered."""
    return f"{check_stream_name(stream)}.predictions"


def shadow(stream: str) -> str:
    """What the challenger would have answered to the same requests."""
    return f"{check_stream_name(stream)}.shadow"


def events(stream: str) -> str:
    """What happened to the model, in JSON, kept for ever."""
    return f"{check_stream_name(stream)}.events"


def dead_letters(stream: str) -> str:
    """Records that could not be learnt from, unchanged (huge ones: where they stood), with the reason, for ever."""
    return f"{check_stream_name(stream)}.dead-letters"


def ensure_source_topics(settings: KafkaSettings, stream: str, *, partitions: int = 1, replication: int = -1) -> None:
    """Make the topics that a producer writes, where they are missing. Those that are there stay as they are.

    `replication` -1 is the brokers' default. Raises `UserError` where the brokers do not let us.
    """
    shape = {"num_partitions": partitions, "replication_factor": replication, "configs": {"cleanup.policy": "delete"}}
    _ensure(settings, {samples(stream): shape, unlabelled(stream): shape})


def ensure_report_topics(settings: KafkaSettings, stream: str, *, replication: int = -1) -> None:
    """Make the topics that a learner writes, where they are missing. Raises as `ensure_source_topics`.

    Events and dead letters have one partition, which keeps their order, and are kept for good. A topic for dead letters
    that somebody else made, and that takes too small ones only, is a `UserError`.
    """
    one = {"num_partitions": 1, "replication_factor": replication}
    _ensure(
        settings,
        {
            events(stream): one | {"configs": _FOREVER},
            dead_letters(stream): one | {"configs": _FOREVER | {"max.message.bytes": str(DEAD_LETTER_TOPIC_BYTES)}},
        },
    )
    _check_dead_letters_topic(settings, dead_letters(stream))


def ensure_answers_topic(settings: KafkaSettings, name: str, *, requests: str) -> None:
    """Make the topic of the answers where it is missing, with as many partitions as that of the requests has.

    Raises `UserError` where there is no topic of requests, both are one topic, or the brokers do not let us.
    """
    if name == requests:
        raise UserError(f"requests and answers are both {name}: a predictor would answer itself; give another --output")
    with kafka_connection.admin(settings) as admin, kafka_connection.talking(settings):
        described = _described(admin, requests, "Read")
    if described is None:
        raise UserError(
            f"topic {requests} does not exist at {kafka_connection.bootstrap_servers(settings)}: make it, with as many "
            "partitions as there are to be predictors, or check --input"
        )
    _check_allowed(described, "Read")
    partitions = max(1, len(described["partitions"]))
    shape = {"num_partitions": partitions, "replication_factor": -1, "configs": {"cleanup.policy": "delete"}}
    _ensure(settings, {name: shape})


def check_may_report(settings: KafkaSettings, stream: str) -> None:
    """Whether this user may write and read back what a learner tells, as far as the brokers say it.

    Raises `UserError`: at the start, and not when the first dead letter comes, which may be after weeks.
    """
    with kafka_connection.admin(settings) as admin, kafka_connection.talking(settings):
        for described in admin.describe_topics([events(stream), dead_letters(stream)]):
            _check_allowed(described, "Write", "Read")


def _check_dead_letters_topic(settings: KafkaSettings, name: str) -> None:
    servers = kafka_connection.bootstrap_servers(settings)
    with kafka_connection.admin(settings) as admin, kafka_connection.talking(settings):
        (described,) = admin.describe_topics([name])
        _check_allowed(described, "DescribeConfigs")
        takes = int(_config(admin, name, "max.message.bytes"))
    if takes < DEAD_LETTER_TOPIC_NEEDS_BYTES:
        raise UserError(
            f"topic {name} has max.message.bytes={takes}, and a larger dead letter would stop the learning; raise it: "
            f"kafka-configs.sh --bootstrap-server {servers} --alter --topic {name} "
            f"--add-config max.message.bytes={DEAD_LETTER_TOPIC_BYTES}"
        )


def _ensure(settings: KafkaSettings, wanted: dict[str, dict[str, Any]]) -> None:
    with kafka_connection.admin(settings) as admin, kafka_connection.talking(settings):
        existing = {topic["name"] for topic in admin.describe_topics(list(wanted)) if topic["error_code"] == 0}
        for name, shape in wanted.items():
            if name in existing:
                continue
            try:
                admin.create_topics({name: shape})
            except kafka_errors.TopicAlreadyExistsError:
                continue  # somebody else was quicker: just as good
            except (
                kafka_errors.AuthorizationError,
                kafka_errors.InvalidReplicationFactorError,
                kafka_errors.InvalidPartitionsError,
                kafka_errors.PolicyViolationError,
                kafka_errors.InvalidTopicError,
            ) as error:
                raise UserError(
                    f"topic {name} is not there, or this user may not see it, and it cannot be made "
                    f"({type(error).__name__}); have it made by whoever runs the cluster, with "
                    f"{shape['num_partitions']} partitions and {shape['configs']}, and ask for the ACLs on it"
                ) from error
        admin.wait_for_topics(list(wanted))


class UnlabelledMissing(UserError):
    """There is no topic of records without labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesTopic:
    """The topic that is learnt from, as it is now: its identity, and that of the log it is part of."""

    topic: str
    topic_id: str
    cluster_id: str
    partitions: tuple[Partition, ...]


def check_unlabelled_topic(settings: KafkaSettings, name: str) -> tuple[Partition, ...]:
    """The partitions of a topic of records without labels. Raises `UnlabelledMissing`, and `UserError` where it is not
    to be read."""
    partitions = readable_partitions(settings, name)
    if not partitions:
        raise UnlabelledMissing(
            f"topic {name} does not exist at {kafka_connection.bootstrap_servers(settings)}; send records without a "
            "label to it (`palimpsest produce --unlabelled-share`)"
        )
    return partitions


def readable_partitions(settings: KafkaSettings, name: str) -> tuple[Partition, ...]:
    """The partitions of a topic, in the order of their numbers; none where it does not exist.

    Raises `UserError` where it is not to be read, or no broker lets us in.
    """
    with kafka_connection.admin(settings) as admin, kafka_connection.talking(settings):
        described = _described(admin, name, "Read", "Describe")
    return () if described is None else _partitions(described)


def topic_partitions(settings: KafkaSettings, topic: str) -> tuple[str, tuple[Partition, ...]]:
    """Topic id and partitions; no partitions where there is no such topic. Raises `UserError`."""
    with kafka_connection.admin(settings) as admin, kafka_connection.talking(settings):
        described = _described(admin, topic, "Describe")
    return ("", ()) if described is None else (str(described["topic_id"]), _partitions(described))


def check_samples_topic(settings: KafkaSettings, stream: str) -> SamplesTopic:
    """What the brokers say of `<stream>.samples`.

    Raises `UserError` where it is missing, not to be read, or compacted: compaction deletes records out of the middle,
    so that what was learnt could not be learnt again.
    """
    name = samples(stream)
    with kafka_connection.admin(settings) as admin, kafka_connection.talking(settings):
        cluster_id = str(admin.describe_cluster()["cluster_id"])
        described = _described(admin, name, "Read", "DescribeConfigs")
        if described is None:
            raise UserError(
                f"topic {name} does not exist at {kafka_connection.bootstrap_servers(settings)}; "
                f"make it with `palimpsest produce --stream {stream}`, or check --stream{_similar(admin, stream)}"
            )
        _check_allowed(described, "Read", "DescribeConfigs")
        policy = _config(admin, name, "cleanup.policy")
        if "compact" in policy:
            raise UserError(
                f"topic {name} has cleanup.policy={policy}, and a compacted log cannot be learnt from: what was "
                "learnt could not be read again; set it to delete, or produce to another --stream"
            )
    return SamplesTopic(
        topic=name,
        topic_id=str(described["topic_id"]),
        cluster_id=cluster_id,
        partitions=_partitions(described),
    )


def _described(admin: KafkaAdminClient, name: str, *operations: Operation) -> dict[str, Any] | None:
    """What the brokers say of a topic; None: there is none. `UserError` where it is not to be seen: `operations` are
    what is to be done with it."""
    described: dict[str, Any]
    (described,) = admin.describe_topics([name])
    error = kafka_errors.for_code(described["error_code"])
    if error is kafka_errors.UnknownTopicOrPartitionError:
        return None
    if issubclass(error, kafka_errors.AuthorizationError):
        raise UserError(refusal("topic", name, *operations))
    if error is not kafka_errors.NoError and not issubclass(error, kafka_errors.LeaderNotAvailableError):
        raise error
    return described


def _partitions(described: Mapping[str, Any]) -> tuple[Partition, ...]:
    """In the order of their numbers."""
    return tuple(sorted(Partition(described["name"], entry["partition_index"]) for entry in described["partitions"]))


def _check_allowed(described: Mapping[str, Any], *operations: Operation) -> None:
    """Brokers say what this user may do with a topic. Raises `UserError` where it is less than these."""
    allowed = described.get("authorized_operations")
    if allowed is None:
        return  # old brokers do not say it; a refusal is then seen where it happens
    missing = [operation for operation in operations if KAFKA_NAMES[operation] not in allowed]
    if missing:
        raise UserError(refusal("topic", described["name"], *missing))


def retention_seconds(admin: KafkaAdminClient, name: str) -> float | None:
    """How old a topic's records become before they may be deleted; None: as old as you like, `retention.bytes` apart.

    Raises `UserError` where this user may not see the topic's settings.
    """
    configs = _configs(admin, name)
    if "retention.ms" not in configs:  # the client passes over the brokers' refusal
        raise UserError(refusal("topic", name, "DescribeConfigs"))
    retention_ms = int(configs["retention.ms"])
    return retention_ms / 1000 if "delete" in configs["cleanup.policy"] and retention_ms >= 0 else None


def _config(admin: KafkaAdminClient, name: str, setting: str) -> str:
    return _configs(admin, name)[setting]


def _configs(admin: KafkaAdminClient, name: str) -> dict[str, str]:
    """Also those that are the brokers' defaults. Empty where they do not tell this user."""
    resource = ConfigResource(ConfigResourceType.TOPIC, name)
    described = admin.describe_configs([resource], config_filter="all")
    return {setting: str(config["value"]) for setting, config in described["topic"][name].items()}


def _similar(admin: KafkaAdminClient, stream: str) -> str:
    """A hint for a mistyped name; empty where nothing is near."""
    import difflib

    ending = ".samples"
    streams: Iterable[str] = (name.removesuffix(ending) for name in admin.list_topics() if name.endswith(ending))
    near = difflib.get_close_matches(stream, streams, n=3)
    return f" (there is {', '.join(near)})" if near else ""
