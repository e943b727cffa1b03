"""The ACLs that each of our programs needs, in one place: for `palimpsest check` and for the operators' page."""

from __future__ import annotations

from typing import Literal

from consumers import topics
from consumers.acls import CLUSTER, Acl, Operation
from consumers.commit_log import transactional_id
from consumers.kafka_request_log import predictor_group
from consumers.replay_transactions import replay_group
from consumers.topics import MAIN_BRANCH
from pipeline.evaluation.shadow_scores import Role as ShadowRole

Role = Literal["learner", "producer", "dead-letters", "restructure", "promote", "predict", "check"]


def needed_acls(role: Role, stream: str, branch: str = MAIN_BRANCH) -> tuple[Acl, ...]:
    """All that `role` needs where the brokers' default is to allow nothing.

    Write and Read include Describe. Create is needed only where nobody else makes the topics, and stands apart so that
    it may be left out. An idempotent producer needs no more than Write on its topics (Kafka 2.8 and later).
    """
    samples, unlabelled = topics.samples(stream), topics.unlabelled(stream)
    events, dead_letters = topics.events(stream), topics.dead_letters(stream)
    learner = transactional_id(stream, branch)
    match role:
        case "producer":
            return (
                _topic(samples, "Write", why="to send labelled samples"),
                _topic(unlabelled, "Write", why="to send samples without a label"),
                _topic(samples, "Create", why="only where it makes the topic"),
                _topic(unlabelled, "Create", why="only where it makes the topic"),
            )
        case "learner":
            own = (
                Acl(resource="transactional-id", name=learner, operations=("Write",), why="to commit, and to fence"),
                Acl(resource="group", name=learner, operations=("Read",), why="to commit and read back its offsets"),
                _topic(samples, "Read", "DescribeConfigs", why="to learn; its cleanup.policy and retention"),
            )
            if branch != MAIN_BRANCH:
                return own  # another branch tells the stream nothing
            return (
                *own,
                _topic(events, "Write", "Read", why="to tell what happened; read back after a fall-back"),
                _topic(dead_letters, "Write", "Read", "DescribeConfigs", why="as events; its largest record"),
                _topic(events, "Create", why="only where it makes the topic"),
                _topic(dead_letters, "Create", why="only where it makes the topic"),
            )
        case "dead-letters":
            replay = replay_group(stream)
            return (
                _topic(dead_letters, "Read", "DescribeConfigs", why="to list and to show; its largest record"),
                _topic(samples, "Write", "Read", "DescribeConfigs", why="to send them back; huge ones lie there"),
                _topic(events, "Write", "Read", why="to tell what was sent back"),
                Acl(resource="transactional-id", name=replay, operations=("Write",), why="all of a replay, or none"),
                Acl(resource="group", name=replay, operations=("Read",), why="what was sent back before"),
            )
        case "restructure":
            return (
                _topic(
                    samples, "Read", "DescribeConfigs", why="the new classes' records; its cleanup.policy is looked at"
                ),
                _topic(unlabelled, "Read", why="what a job learns from besides"),
            )
        case "promote":
            return (
                _topic(events, "Write", why="to tell what was promoted, or refused"),
                *_read_shadow(stream),
            )
        case "predict":
            return (
                _topic(topics.requests(stream), "Read", why="to answer them; another name with --input"),
                *_answering("champion", stream, topics.predictions(stream)),
                *_answering("challenger", stream, topics.shadow(stream)),
                _topic(events, "Read", why="to hear of a promotion at once"),
                *_read_shadow(stream),
            )
        case "check":
            return (
                *(
                    _topic(name, "Describe", "DescribeConfigs", why="its partitions, offsets and settings")
                    for name in (samples, events, dead_letters)
                ),
                Acl(resource="group", name=learner, operations=("Describe",), why="what is committed"),
                Acl(
                    resource="cluster",
                    name=CLUSTER,
                    operations=("Describe", "DescribeConfigs"),
                    why="the brokers' own settings",
                ),
            )


def _answering(role: ShadowRole, stream: str, output: str) -> tuple[Acl, ...]:
    group = predictor_group(stream, role)
    return (
        Acl(resource="group", name=group, operations=("Read",), why=f"the {role}'s instances share the requests out"),
        Acl(
            resource="transactional-id",
            name=f"{group}.",
            operations=("Write",),
            why="each answer once; the instance's name comes after it",
            prefixed=True,
        ),
        _topic(output, "Write", why=f"the {role}'s answers; another name with --output"),
        _topic(output, "Create", why="only where it makes the topic"),
    )


def _read_shadow(stream: str) -> tuple[Acl, ...]:
    return (
        _topic(topics.predictions(stream), "Read", why="what the champion answered"),
        _topic(topics.shadow(stream), "Read", why="what the challenger answered"),
        _topic(topics.samples(stream), "Read", why="the true labels that came later"),
    )


def _topic(name: str, *operations: Operation, why: str) -> Acl:
    return Acl(resource="topic", name=name, operations=operations, why=why)
