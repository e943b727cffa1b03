"""Which promotions made a version the champion: a tag on it, since aliases keep no history.

    palimpsest.promotions    [{"at": "2026-07-01T09:30:00.000000Z", "by": "ada", "from": 3, "to": 7, "forced": false,
                               "rollback": false, "figures": {"average_accuracy": [0.91, 0.93], ...},
                               "stage": "told"}, ...]

Newest last; the oldest go where the tag would become too long. `stage` is begun (no alias is moved for certain), moved
(the aliases are), told (the event is sent too).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, cast, get_args

from model_store.registry import MAX_TAG_CHARACTERS, RegisteredVersion
from pipeline.state import Json

PROMOTIONS_TAG = "palimpsest.promotions"
_MAX_NAME_CHARACTERS = 200  # of who promoted

Stage = Literal["begun", "moved", "told"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One move of the alias `champion`."""

    at: str  # ISO 8601, UTC
    by: str
    from_version: int | None  # None: there was no champion
    to_version: int
    forced: bool = False  # the gate had refused it
    rollback: bool = False
    figures: Mapping[str, Json] = field(default_factory=dict)  # {name: [champion's, challenger's]}; {}: none were taken
    stage: Stage = "begun"

    @property
    def id(self) -> str:
        """The same whenever it is told; of no other promotion of the stream."""
        return hashlib.sha256(f"{self.from_version} {self.to_version} {self.rollback} {self.at}".encode()).hexdigest()[
            :16
        ]

    @property
    def as_json(self) -> dict[str, Json]:
        """Without the stage, which is nobody's but the tag's."""
        return {
            "at": self.at,
            "by": self.by,
            "from": self.from_version,
            "to": self.to_version,
            "forced": self.forced,
            "rollback": self.rollback,
            "figures": dict(self.figures),
        }


def new_promotion(
    *,
    by: str,
    from_version: int | None,
    to_version: int,
    forced: bool = False,
    rollback: bool = False,
    figures: Mapping[str, Json] | None = None,
    now: datetime | None = None,
) -> Promotion:
    """Begun now."""
    return Promotion(
        at=(now or datetime.now(UTC)).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        by=by[:_MAX_NAME_CHARACTERS],
        from_version=from_version,
        to_version=to_version,
        forced=forced,
        rollback=rollback,
        figures=figures or {},
    )


def promotions_of(version: RegisteredVersion) -> list[Promotion]:
    """Oldest first. What somebody else wrote there is passed over: anybody who may tag versions can."""
    try:
        entries = json.loads(version.tags.get(PROMOTIONS_TAG, "[]"))
    except (ValueError, RecursionError):
        return []
    found = [_parsed(entry, version.version) for entry in entries] if isinstance(entries, list) else []
    return [promotion for promotion in found if promotion is not None]


def promotions_tag(promotions: Sequence[Promotion]) -> str:
    """The value of the tag, within MLflow's limit: the newest that fit, at least the very newest."""
    entries = [{**promotion.as_json, "stage": promotion.stage} for promotion in promotions]
    for start in range(len(entries)):
        text = _dumped(entries[start:])
        if len(text) <= MAX_TAG_CHARACTERS:
            return text
    # Figures are ours and few, names are cut: only a tag that somebody wrote by hand comes here.
    return _dumped([{**entry, "figures": {}} for entry in entries[-1:]])


def _dumped(entries: Sequence[Mapping[str, Json]]) -> str:
    return json.dumps(entries, ensure_ascii=False, separators=(",", ":"))


def _parsed(entry: object, version: int) -> Promotion | None:
    if not isinstance(entry, dict):
        return None
    at, by, came_from, stage = (entry.get(name) for name in ("at", "by", "from", "stage"))
    figures = entry.get("figures")
    if not (isinstance(at, str) and isinstance(by, str) and (came_from is None or type(came_from) is int)):
        return None
    if entry.get("to") != version or stage not in get_args(Stage):
        return None
    return Promotion(
        at=at,
        by=by,
        from_version=came_from,
        to_version=version,
        forced=entry.get("forced") is True,
        rollback=entry.get("rollback") is True,
        figures=cast("dict[str, Json]", figures) if isinstance(figures, dict) else {},
        stage=cast(Stage, stage),
    )
