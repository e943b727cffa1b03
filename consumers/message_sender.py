"""One message from outside the learner: the event of a replay that has ended, of a promotion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kafka import errors as kafka_errors

from consumers import kafka_connection
from consumers.acls import refusal
from consumers.commit_log import BrokerUnavailable
from consumers.kafka_nullable import NullableSerializer, sendable_headers, sendable_value
from consumers.kafka_settings import KafkaSettings
from consumers.kafka_transactions import close_at_once
from model_store.snapshot import OutboxMessage
from pipeline.user_error import UserError

_ASK_SECONDS = 30.0


def tell(settings: KafkaSettings, message: OutboxMessage) -> None:
    """Send it, and wait until the brokers have it. Raises `BrokerUnavailable`, and `UserError` where they refuse.

    In no transaction: one that a kill leaves open would hold back the messages behind it.
    """
    try:
        with writing_to(message.topic):
            send_message(settings, message)
    except kafka_connection.BrokersUnreachable as error:
        raise BrokerUnavailable(str(error)) from error
    except kafka_errors.KafkaError as error:
        raise BrokerUnavailable(f"the brokers did not take a message for {message.topic} ({error})") from error


def send_message(settings: KafkaSettings, message: OutboxMessage) -> None:
    """The same with the client's own errors."""
    producer = kafka_connection.producer(
        settings, value_serializer=NullableSerializer(), max_block_ms=int(_ASK_SECONDS * 1000)
    )
    try:
        producer.send(
            message.topic,
            key=message.key,
            value=sendable_value(message.value),
            headers=sendable_headers(message.headers),
        ).get(_ASK_SECONDS)
    finally:
        close_at_once(producer)


@contextmanager
def writing_to(topic: str) -> Iterator[None]:
    """A refusal to write to it names the ACL."""
    try:
        yield
    except kafka_errors.TopicAuthorizationFailedError as error:
        raise UserError(refusal("topic", topic, "Write")) from error
