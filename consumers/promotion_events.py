"""What a promotion tells: `promoted`, and `promotion_refused`."""

from __future__ import annotations

import hashlib
import json
import time

from consumers.events import event_message
from consumers.topics import MAIN_BRANCH
from model_store.promotion import Verdict
from model_store.promotion_history import Promotion
from model_store.snapshot import OutboxMessage

PROMOTED = "promoted"


def promoted(stream: str, promotion: Promotion) -> OutboxMessage:
    """The champion has moved, forward or back. Told twice it has one id."""
    return event_message(
        stream=stream,
        branch=MAIN_BRANCH,
        kind=PROMOTED,
        key=promotion.id,
        data={"promotion": promotion.id, **promotion.as_json},
        time_seconds=time.time(),
    )


def promotion_refused(stream: str, *, champion: int | None, version: int, by: str, verdict: Verdict) -> OutboxMessage:
    """The gate said no. Refused again for the very same reasons, it is the same event."""
    what = json.dumps([champion, version, by, list(verdict.reasons)])
    return event_message(
        stream=stream,
        branch=MAIN_BRANCH,
        kind="promotion_refused",
        key=hashlib.sha256(what.encode()).hexdigest()[:16],
        data={
            "by": by,
            "from": champion,
            "to": version,
            "reasons": list(verdict.reasons),
            "figures": verdict.figures,
        },
        time_seconds=time.time(),
    )
