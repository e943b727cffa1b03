"""What the embedded broker is told: one node, broker and controller in one, sized for a single machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.user_error import UserError

_MIB = 1024 * 1024

# Whoever sets these makes another broker than the one whose state, address and log we look after.
_OURS = frozenset({"process.roles", "node.id", "log.dir", "log.dirs", "metadata.log.dir", "controller.quorum.voters",
                   "controller.listener.names", "inter.broker.listener.name", "advertised.listeners"})  # fmt: skip
# Added to ours with a comma instead of replacing them: the plain local listener stays, it is how readiness is seen.
_ADDED_TO_OURS = ("listeners", "listener.security.protocol.map")


def server_properties(
    *, log_dir: Path, port: int, controller_port: int, extra_properties: Mapping[str, str]
) -> dict[str, str]:
    """`server.properties` as a mapping.

    `extra_properties` replace our values, but for `listeners` and `listener.security.protocol.map`, which are added
    to ours. Raises `UserError` for a key that is not theirs to set.
    """
    refused = sorted(_OURS.intersection(extra_properties))
    if refused:
        raise UserError(f"the embedded broker sets {', '.join(refused)} itself: leave it out of the extra properties")
    if "," in str(log_dir):
        raise UserError(f"the folder {log_dir} has a comma in its name, which Kafka reads as two: choose another")
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        # A voter named here may change its port between two starts; one recorded in the metadata log may not.
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(log_dir),
        # A topic that nobody created is a typing error, not a wish.
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "5",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "5",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "5",
        # Nobody else is about to join: waiting for more members only delays the first record.
        "group.initial.rebalance.delay.ms": "0",
        # After kill -9 the controller takes the old broker for alive until its session ends, and refuses the new one.
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "500",
        # A learner that was killed leaves its transaction open; until it is aborted, readers stand still.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # An image of 1 MB passes, and so does a batch of them.
        "message.max.bytes": str(8 * _MIB),
        "replica.fetch.max.bytes": str(8 * _MIB),
        "log.retention.hours": str(7 * 24),
        # Kafka's 128 MiB are a quarter of our heap; this cleans some 600,000 keys a pass.
        "log.cleaner.dedupe.buffer.size": str(16 * _MIB),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "4",
    }
    for key, value in extra_properties.items():
        properties[key] = f"{properties[key]},{value}" if key in _ADDED_TO_OURS else value
    return properties


def properties_text(properties: Mapping[str, str]) -> str:
    """A Java `.properties` file, in ASCII; any character stands in a value."""
    return "".join(f"{_escape(key)}={_escape(value)}\n" for key, value in properties.items())


def _escape(text: str) -> str:
    # java.util.Properties reads Latin-1, takes a backslash as an escape and drops leading blanks.
    escaped = []
    for character in text:
        if character in "\\ =:#!":
            escaped.append("\\" + character)
        elif " " < character < "\x7f":
            escaped.append(character)
        else:
            utf16 = character.encode("utf-16-be")
            escaped += [f"\\u{utf16[i]:02x}{utf16[i + 1]:02x}" for i in range(0, len(utf16), 2)]
    return "".join(escaped)


def log4j_properties() -> str:
    """Kafka's log goes to one file that cannot grow without bound; `kafka.logs.dir` says where."""
    return """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${sys:kafka.logs.dir}/broker.log
appender.file.filePattern = ${sys:kafka.logs.dir}/broker.%i.log
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ISO8601} %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
# Hundreds of lines of settings at every start would push what matters out of the end of the log.
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = warn
"""
