"""An operator's look at the brokers, for one stream and branch: what a learner needs of them, and whether it has it.

Nothing is claimed, written or made. Everything is asked of the brokers alone, with the rights of whoever asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, OffsetSpec

from consumers import kafka_connection, topics
from consumers.acls import CLUSTER, KAFKA_NAMES, Acl, Operation, Resource
from consumers.check_report import Fact, Verdict, days, judged, mebibytes
from consumers.commit_log import parse_metadata, transactional_id
from consumers.kafka_settings import KafkaSettings
from consumers.kafka_transactions import MAX_REQUEST_BYTES, TRANSACTION_TIMEOUT_SECONDS
from consumers.needed_acls import needed_acls
from pipeline.record import Partition
from pipeline.user_error import UserError

# A new cluster first makes its internal topics; until then it knows no group.
_SETTLE_SECONDS = 10.0
_PAUSE_SECONDS = 0.2
# A record's time may lie ahead of this machine's clock by so much before we speak of it.
_SKEW_SECONDS = 10.0
# Of what retention keeps, so much should lie below the learner: nearer to the edge, a weekend is too long.
_SAFE_SHARE = 0.2
_THIS_MACHINE = {"127.0.0.1", "localhost", "[::1]"}
_NOT_TOLD = "not told by the brokers"

Answer = TypeVar("Answer")
Configs = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Where the partitions of the samples begin and end."""

    cluster_id: str
    topic_id: str
    beginnings: Mapping[Partition, int]
    ends: Mapping[Partition, int]
    retention_seconds: float | None  # None: for ever, or not told


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterReport:
    """The facts, and of the samples what a state folder is compared with; None where they could not be seen."""

    facts: tuple[Fact, ...]
    log: Log | None = None


def check_cluster(
    settings: KafkaSettings, *, stream: str, branch: str = topics.MAIN_BRANCH, heartbeat_seconds: float
) -> ClusterReport:
    """All facts about the brokers; where none lets us in, just that. Raises `UserError` for a name that is none.

    1. The brokers themselves, and their own settings.
    2. The stream's topics and their settings.
    3. What the group has committed, and how far it is behind.
    4. The ACLs, as far as the brokers tell.
    """
    topics.check_stream_name(stream)
    servers = kafka_connection.bootstrap_servers(settings)
    began = time.monotonic()
    try:
        with kafka_connection.admin(settings) as admin:
            look = _Look(admin=admin, servers=servers, stream=stream, branch=branch)
            look.way_in(settings)  # 1.
            look.brokers(time.monotonic() - began, heartbeat_seconds)
            look.topics()  # 2.
            look.group()  # 3.
            look.acls()  # 4.
            return ClusterReport(facts=tuple(look.facts), log=look.log)
    except (UserError, kafka_errors.KafkaError) as error:
        return ClusterReport(
            facts=(judged("brokers", "reachable", f"no: {servers}", "problem", " ".join(str(error).split())),)
        )


@dataclass(kw_only=True)
class _Look:
    """One look at the brokers; each step adds its facts."""

    admin: KafkaAdminClient
    servers: str
    stream: str
    branch: str
    facts: list[Fact] = field(default_factory=list)
    log: Log | None = None
    cluster: Mapping[str, Any] = field(default_factory=dict)
    described: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    group_operations: Sequence[str] | None = None

    def add(self, part: str, name: str, value: object, verdict: Verdict = "ok", way_out: str = "") -> None:
        self.facts.append(judged(part, name, value, verdict, way_out))

    # 1.

    def way_in(self, settings: KafkaSettings) -> None:
        who = f", {settings.sasl_mechanism} as {settings.sasl_plain_username}" if settings.sasl_mechanism else ""
        hosts = {server.strip().rpartition(":")[0] for server in self.servers.split(",")}
        verdict: Verdict = "ok"
        way_out = ""
        if settings.uses_tls and not settings.ssl_check_hostname:
            verdict, way_out = "warning", "anybody with any certificate of this authority is taken for the brokers: "
            way_out += "set kafka.ssl_check_hostname to true"
        elif not settings.uses_tls and not hosts <= _THIS_MACHINE:
            verdict, way_out = "warning", "whoever is on the way reads and changes the records, and reads passwords: "
            way_out += "set kafka.security_protocol to SASL_SSL or SSL"
        self.add("brokers", "way in", f"{settings.security_protocol}{who}", verdict, way_out)

    def brokers(self, seconds: float, heartbeat_seconds: float) -> None:
        self.cluster = _settled(self.admin.describe_cluster)
        brokers = self.cluster["brokers"]
        self.add("brokers", "reachable", f"{self.servers} in {seconds:.1f} s, {len(brokers)} in the cluster")
        self.add("brokers", "cluster id", self.cluster["cluster_id"])
        version = self.admin._manager.broker_version
        self.add(
            "brokers",
            "version",
            f"{'.'.join(map(str, version))} or later (as far as its answers tell)",
            "ok" if tuple(version) >= (2, 8) else "warning",
            "older brokers want the ACL IdempotentWrite on the cluster too, and were never tried; upgrade them",
        )
        configs = self._configs(ConfigResourceType.BROKER, str(brokers[0]["broker_id"]))
        if configs is None:
            self.add(
                "brokers", "settings", "not to be seen", "warning", _ask_for("cluster", CLUSTER, "DescribeConfigs")
            )
            return
        largest = int(configs.get("transaction.max.timeout.ms", 0)) / 1000
        self.add(
            "brokers",
            "transaction.max.timeout.ms",
            days(largest),
            "ok" if largest >= TRANSACTION_TIMEOUT_SECONDS else "problem",
            f"a learner's transactions may take {TRANSACTION_TIMEOUT_SECONDS:.0f} s and are refused: set it to at "
            f"least {TRANSACTION_TIMEOUT_SECONDS * 1000:.0f}",
        )
        forgotten = int(configs.get("offsets.retention.minutes", 0)) * 60
        self.add(
            "brokers",
            "offsets.retention.minutes",
            f"{days(forgotten)}, committed again every {heartbeat_seconds:.0f} s while a learner runs",
            "ok" if forgotten >= 86_400 else "problem" if forgotten < 10 * heartbeat_seconds else "warning",
            "what is committed is forgotten while no learner runs, and with it who was told what: set it to 10080 "
            "(a week) or more",
        )
        request = int(configs.get("socket.request.max.bytes", 0))
        self.add(
            "brokers",
            "socket.request.max.bytes",
            mebibytes(request),
            "ok" if request > MAX_REQUEST_BYTES else "warning",
            f"a learner sends up to {mebibytes(MAX_REQUEST_BYTES)} at once: raise it to 104857600",
        )
        self.add("brokers", "message.max.bytes", mebibytes(int(configs.get("message.max.bytes", 0))))

    # 2.

    def topics(self) -> None:
        names = self._names()
        for described in _settled(lambda: self.admin.describe_topics(list(names))):
            self.described[described["name"]] = described
        for name in names:
            described = self.described[name]
            error = kafka_errors.for_code(described["error_code"])
            if error is kafka_errors.NoError:
                self._topic(name, described)
            elif error is not kafka_errors.UnknownTopicOrPartitionError:
                acl = _ask_for("topic", name, "Describe", "DescribeConfigs")
                self.add("topics", name, f"not to be seen ({error.__name__})", "problem", acl)
            elif name == topics.samples(self.stream):
                way_out = f"make it with `palimpsest produce --stream {self.stream}`, or check --stream"
                self.add("topics", name, "missing", "problem", way_out)
            elif self.branch == topics.MAIN_BRANCH:
                self.add("topics", name, "missing; a learner makes it, where it has the ACL Create")

    def _names(self) -> tuple[str, ...]:
        return topics.samples(self.stream), topics.events(self.stream), topics.dead_letters(self.stream)

    def _topic(self, name: str, described: Mapping[str, Any]) -> None:
        partitions = described["partitions"]
        offline = [entry["partition_index"] for entry in partitions if entry["leader_id"] < 0]
        self.add(
            "topics",
            f"{name} partitions",
            len(partitions) if not offline else f"{len(partitions)}, without a leader: {offline}",
            "problem" if offline else "ok",
            "bring back the brokers that hold them: nothing is read or written there meanwhile",
        )
        configs = self._configs(ConfigResourceType.TOPIC, name)
        copies = min((len(entry["replica_nodes"]) for entry in partitions), default=0)
        self._copies(name, copies, configs or {})
        if configs is None:
            acl = _ask_for("topic", name, "DescribeConfigs")
            self.add("topics", f"{name} settings", "not to be seen", "warning", acl)
            return
        if configs["unclean.leader.election.enable"] == "true":
            setting = "unclean.leader.election.enable"
            way_out = f"a log may lose its tail and be written again: {_set_config(name, setting, 'false')}"
            self.add("topics", f"{name} {setting}", "true", "problem", way_out)
        policy = configs["cleanup.policy"]
        self.add(
            "topics",
            f"{name} cleanup.policy",
            policy,
            "problem" if "compact" in policy else "ok",
            f"compaction deletes records out of the middle: {_set_config(name, 'cleanup.policy', 'delete')}",
        )
        if name == topics.samples(self.stream):
            self._samples(name, described, configs)
            return
        kept = {key: configs[key] for key in ("retention.ms", "retention.bytes")}
        self.add(
            "topics",
            f"{name} retention",
            "for ever" if set(kept.values()) == {"-1"} else ", ".join(f"{key}={value}" for key, value in kept.items()),
            "ok" if set(kept.values()) == {"-1"} else "warning",
            f"what was told is deleted: {_set_config(name, 'retention.ms', '-1')},retention.bytes=-1",
        )
        if name == topics.dead_letters(self.stream):
            takes = int(configs["max.message.bytes"])
            self.add(
                "topics",
                f"{name} max.message.bytes",
                mebibytes(takes),
                "ok" if takes >= topics.DEAD_LETTER_TOPIC_NEEDS_BYTES else "problem",
                "a larger dead letter would stop the learning: "
                f"{_set_config(name, 'max.message.bytes', str(topics.DEAD_LETTER_TOPIC_BYTES))}",
            )

    def _copies(self, name: str, copies: int, configs: Configs) -> None:
        in_sync = int(configs.get("min.insync.replicas", 1))
        verdict: Verdict = "ok"
        way_out = ""
        if in_sync > copies:
            verdict, way_out = (
                "problem",
                f"nothing can be written: {_set_config(name, 'min.insync.replicas', str(copies))}",
            )
        elif copies == 1:
            verdict, way_out = "warning", "a broker's disk that is lost takes the log along: three copies, in a cluster"
        elif in_sync == 1:
            verdict, way_out = (
                "warning",
                f"one copy may acknowledge alone: {_set_config(name, 'min.insync.replicas', '2')}",
            )
        elif in_sync == copies:
            verdict, way_out = "warning", "no broker may be away: one copy more than min.insync.replicas"
        self.add("topics", f"{name} copies", f"{copies}, min.insync.replicas {in_sync}", verdict, way_out)

    def _samples(self, name: str, described: Mapping[str, Any], configs: Configs) -> None:
        numbers = [Partition(name, entry["partition_index"]) for entry in described["partitions"]]
        retention_ms = int(configs["retention.ms"])
        kept = "for ever" if retention_ms < 0 else days(retention_ms / 1000)
        size = int(configs["retention.bytes"])
        self.add("topics", f"{name} retention", kept if size < 0 else f"{kept}, at most {mebibytes(size)} a partition")
        self.log = Log(
            cluster_id=str(self.cluster["cluster_id"]),
            topic_id=str(described["topic_id"]),
            beginnings=self._offsets(numbers, OffsetSpec.EARLIEST),
            ends=self._offsets(numbers, OffsetSpec.LATEST),
            retention_seconds=None if retention_ms < 0 else retention_ms / 1000,
        )
        records = sum(self.log.ends.values()) - sum(self.log.beginnings.values())
        self.add("topics", f"{name} records", f"{records:,} offsets")
        newest = self.admin.list_partition_offsets({_theirs(p): OffsetSpec.MAX_TIMESTAMP for p in numbers})
        newest_ms = max((found.timestamp for found in newest.values()), default=-1)
        if newest_ms >= 0:
            ahead = newest_ms / 1000 - time.time()
            self.add(
                "topics",
                f"{name} newest record",
                f"{days(ahead)} in the future" if ahead > 0 else f"{days(-ahead)} ago",
                "warning" if ahead > _SKEW_SECONDS else "ok",
                "a producer's clock or this machine's is wrong, and retention goes by the records' time: set it",
            )

    # 3.

    def group(self) -> None:
        name = transactional_id(self.stream, self.branch)
        try:
            described = _settled(lambda: self.admin.describe_groups([name]))[name]
            committed = _settled(lambda: self.admin.list_group_offsets({name: None}))[name]
        except kafka_errors.GroupIdNotFoundError:
            committed, described = {}, {}
        except kafka_errors.AuthorizationError:
            self.add("group", name, "not to be seen", "warning", _ask_for("group", name, "Describe"))
            return
        except kafka_errors.KafkaError as error:
            way_out = "look at the brokers' logs and at __consumer_offsets: a learner needs this answer at its start"
            self.add("group", name, f"no answer ({type(error).__name__})", "problem", way_out)
            return
        self.group_operations = described.get("authorized_operations")
        ours = {
            Partition(theirs.topic, theirs.partition): entry
            for theirs, entry in committed.items()
            if theirs.topic == topics.samples(self.stream) and entry.offset >= 0
        }
        if not ours:
            self.add("group", name, "nothing committed yet")
            return
        newest = max((parse_metadata(entry.metadata) or (0, 0) for entry in ours.values()), default=(0, 0))
        self.add("group", name, f"generation {newest[0]}, snapshot {newest[1]}")
        if self.log is None:
            return
        for partition in sorted(ours):
            if partition in self.log.ends:
                self._lag(partition, ours[partition].offset, self.log)

    def _lag(self, partition: Partition, offset: int, log: Log) -> None:
        begin, end = log.beginnings[partition], log.ends[partition]
        verdict: Verdict = "ok"
        way_out = ""
        if offset < begin:
            verdict = "problem"
            way_out = (
                f"retention deleted {begin - offset:,} unlearnt records: `learn --accept-gap` goes on without them"
            )
        elif offset > end:
            verdict = "problem"
            way_out = "the log lost its tail: `learn --accept-gap` goes on from its end"
        elif begin > 0 and end > offset and offset - begin < _SAFE_SHARE * (end - begin):
            verdict = "warning"
            way_out = "retention is near to what is not learnt yet: raise retention.ms and retention.bytes now"
        self.add("group", f"{partition} lag", f"{max(end - offset, 0):,} (committed {offset:,})", verdict, way_out)

    # 4.

    def acls(self) -> None:
        for acl in needed_acls("learner", self.stream, self.branch):
            if acl.operations == ("Create",) and self.described[acl.name]["error_code"] == 0:
                continue
            allowed = self._allowed(acl)
            missing = [] if allowed is None else [name for name in acl.operations if KAFKA_NAMES[name] not in allowed]
            lacking = Acl(resource=acl.resource, name=acl.name, operations=tuple(missing))
            self.add(
                "acls",
                str(acl),
                _NOT_TOLD if allowed is None else "missing" if missing else "there",
                "problem" if missing else "ok",
                f"if this is the learner's user: {lacking.command('User:NAME')}",
            )

    def _allowed(self, acl: Acl) -> Sequence[str] | None:
        """What this user may do there; None where the brokers do not tell."""
        match acl.resource:
            case "topic":
                operations: Sequence[str] | None = self.described[acl.name].get("authorized_operations")
                if self.described[acl.name]["error_code"] == kafka_errors.TopicAuthorizationFailedError.errno:
                    return ()
                # Of a topic that is not there, they tell what they would allow if it were.
                return operations
            case "group":
                return self.group_operations
            case _:
                return None

    # How

    def _configs(self, kind: ConfigResourceType, name: str) -> Configs | None:
        """All settings of a topic or broker; None where this user may not see them."""
        try:
            answer = _settled(lambda: self.admin.describe_configs([ConfigResource(kind, name)], config_filter="all"))
        except kafka_errors.AuthorizationError:
            return None
        found = answer[kind.name.lower()][name]
        return {key: str(entry["value"]) for key, entry in found.items()} or None

    def _offsets(self, partitions: Sequence[Partition], which: int) -> dict[Partition, int]:
        answer = _settled(lambda: self.admin.list_partition_offsets({_theirs(p): which for p in partitions}))
        return {Partition(theirs.topic, theirs.partition): found.offset for theirs, found in answer.items()}


def _theirs(partition: Partition) -> TopicPartition:
    return TopicPartition(partition.topic, partition.number)


def _settled(ask: Callable[[], Answer]) -> Answer:
    """An answer, asked for again while the brokers settle."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        try:
            return ask()
        except kafka_errors.RetriableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)


def _ask_for(resource: Resource, name: str, *operations: Operation) -> str:
    return f"have the ACL added: {Acl(resource=resource, name=name, operations=operations).command('User:NAME')}"


def _set_config(topic: str, name: str, value: str) -> str:
    return f"kafka-configs.sh --bootstrap-server HOST:PORT --alter --topic {topic} --add-config {name}={value}"
