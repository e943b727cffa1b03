"""What happened to the model, as CloudEvents in JSON on `<stream>.events`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from consumers import topics
from model_store.snapshot import OutboxMessage
from pipeline.codec.cloud_event import CloudEvent
from pipeline.state import Json


def event_message(
    *, stream: str, branch: str, kind: str, key: str, data: Mapping[str, Json], time_seconds: float
) -> OutboxMessage:
    """One event. Its id is made of what it is about (`key`), not of when it was told: told twice, readers drop one.

    `kind` is new_class, drift, idle_flush, evaluation, version_registered, snapshot_passed_over, ...
    """
    event = CloudEvent(
        id=f"{stream}/{branch}/{kind}/{key}",
        source=f"palimpsest/{stream}/{branch}",
        type=f"io.palimpsest.{kind}",
        content_type="application/json",
        data=json.dumps({"stream": stream, "branch": branch, **data}, ensure_ascii=False).encode(),
        time_seconds=time_seconds,
    )
    return OutboxMessage(
        topic=topics.events(stream), key=kind.encode(), value=event.data, headers=tuple(event.headers())
    )
