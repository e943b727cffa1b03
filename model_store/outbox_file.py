"""The outbox of a snapshot as JSON lines, bytes as base64."""

from __future__ import annotations

import base64
import binascii
import json

from model_store.manifest import OUTBOX_FILE, NotWhole, canonical_json
from model_store.snapshot import OutboxMessage


def encode_message(message: OutboxMessage) -> bytes:
    """One line."""
    return (
        canonical_json(
            {
                "topic": message.topic,
                "key": _to_base64(message.key),
                "value": _to_base64(message.value),
                "headers": [[name, _to_base64(value)] for name, value in message.headers],
            }
        )
        + b"\n"
    )


def decode_message(line: bytes) -> OutboxMessage:
    """Inverse of `encode_message`. `NotWhole` for a line that is something else."""
    try:
        document = json.loads(line)
        headers = tuple((_text(name), _from_base64(value)) for name, value in document["headers"])
        return OutboxMessage(
            topic=_text(document["topic"]),
            key=_from_base64(document["key"]),
            value=_from_base64(document["value"]),
            headers=headers,
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise NotWhole(f"{OUTBOX_FILE} holds a line that is not a message ({error})") from None


def _to_base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _from_base64(value: object) -> bytes | None:
    if value is None:
        return None
    try:
        return base64.b64decode(_text(value), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string was expected, not {type(value).__name__}")
    return value
