"""What there is to say of registered versions: for `palimpsest models`, from their tags and aliases alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from model_store.promotion_history import promotions_of
from model_store.registry import (
    AVERAGE_ACCURACY_TAG,
    AVERAGE_FORGETTING_TAG,
    CLASS_COUNT_TAG,
    WORST_CLASS_TAG,
    RegisteredVersion,
)
from pipeline.state import Json

_COLUMNS = (
    "version",
    "aliases",
    "trigger",
    "parent",
    "classes",
    "records",
    "accuracy",
    "forgetting",
    "worst class",
    "promoted",
    "superseded by",
)


def version_facts(version: RegisteredVersion) -> dict[str, Json]:
    """As JSON. What a version does not say, since an older release or another program made it, is null."""
    classes = version.tags.get(CLASS_COUNT_TAG, "")
    return {
        "version": version.version,
        "aliases": [*sorted(version.aliases)],
        "trigger": version.trigger,
        "parent": version.parent_version,
        "classes": int(classes) if classes.isascii() and classes.isdecimal() else None,
        "records_trained": version.records_trained,
        "average_accuracy": _share(version, AVERAGE_ACCURACY_TAG),
        "average_forgetting": _share(version, AVERAGE_FORGETTING_TAG),
        "worst_class": version.tags.get(WORST_CLASS_TAG),
        # what was begun and never moved made it no champion
        "promotions": [entry.as_json for entry in promotions_of(version) if entry.stage != "begun"],
        "superseded_by": version.superseded_by,
        "created_at_ms": version.created_at_ms,
        "run_id": version.run_id,
    }


def version_rows(versions: Sequence[RegisteredVersion]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(columns, rows) for a person; of the promotions the newest."""
    return _COLUMNS, [_row(version) for version in versions]


def _row(version: RegisteredVersion) -> tuple[str, ...]:
    facts = version_facts(version)
    promotions = [entry for entry in promotions_of(version) if entry.stage != "begun"]
    promoted = ""
    if promotions:
        newest = promotions[-1]
        how = " (rolled back)" if newest.rollback else " (forced)" if newest.forced else ""
        promoted = f"{newest.at[:16].replace('T', ' ')} by {newest.by}{how}"
    return (
        str(version.version),
        ", ".join(sorted(version.aliases)),
        version.trigger or "",
        _text(facts["parent"]),
        _text(facts["classes"]),
        "" if version.records_trained is None else f"{version.records_trained:,}",
        _percent(_share(version, AVERAGE_ACCURACY_TAG)),
        _percent(_share(version, AVERAGE_FORGETTING_TAG)),
        version.tags.get(WORST_CLASS_TAG, ""),
        promoted,
        _text(facts["superseded_by"]),
    )


def _share(version: RegisteredVersion, tag: str) -> float | None:
    """Anybody who may tag versions can write anything there."""
    try:
        value = float(version.tags.get(tag, "nan"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _text(value: Json) -> str:
    return "" if value is None else str(value)
