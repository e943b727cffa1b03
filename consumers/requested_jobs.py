"""The restructuring that a state's learner has asked for: with which snapshots it begins, and which are kept for it.

A request stands in the manifests from the snapshot that was taken for it, the parent, until it is answered: whoever can
read the snapshots that a job needs finds there what is asked for. On `<stream>.events` it is told to people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from consumers.base_snapshots import class_names, young_enough
from model_store.snapshot_store import SnapshotEntry
from pipeline.restructuring.trigger import Kind
from pipeline.state import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedJob:
    """What the newest snapshot asks for."""

    kind: Kind
    reason: str
    at_records: int  # consumed when it was asked for
    parent: SnapshotEntry
    base: SnapshotEntry | None  # the last one before the new classes; None: it is not kept any more


def requested_job(entries: Sequence[SnapshotEntry]) -> RequestedJob | None:
    """`entries`: oldest first. None: nothing is asked for."""
    request = _request(entries[-1]) if entries else None
    if request is None:
        return None
    # not the whole request: that of an older release says less of the same one
    parent = next(entry for entry in entries if (_request(entry) or {}).get("at_records") == request["at_records"])
    older = [entry for entry in _from_before_new_classes(entries, parent) if entry.number < parent.number]
    knows_fewer = [entry for entry in older if len(class_names(entry)) < len(class_names(parent))]
    return RequestedJob(
        kind=_kind(request),
        reason=str(request["reason"]),
        at_records=cast(int, request["at_records"]),
        parent=parent,
        base=knows_fewer[-1] if knows_fewer else None,
    )


def request_facts(parent: SnapshotEntry, kind: Kind) -> dict[str, Json]:
    """What a job of this kind says of the request that it answers: reason, and the records at which it was made; {}: it
    answers none. One of the other kind, by hand, leaves the request as it is."""
    request = _request(parent)
    if request is None or _kind(request) is not kind:
        return {}
    return {"reason": request["reason"], "requested_at": request["at_records"]}


def needed_numbers(entries: Sequence[SnapshotEntry], max_age_seconds: float | None = None) -> set[tuple[int, int]]:
    """(generation, sequence) of what the job that is asked for begins with, or else of the old teacher of the next one,
    as soon as a new class has come; but of none that is older: nobody may answer for years."""
    entries = young_enough(entries, max_age_seconds)
    job = requested_job(entries)
    if job is not None:
        return {entry.number for entry in (job.parent, job.base) if entry is not None}
    # While an adoption is learnt back the newest one may not know the new classes yet, and the base is needed all the
    # same: what it knows is not compared.
    bases = _from_before_new_classes(entries, entries[-1]) if entries else []
    return {bases[-1].number} if bases else set()


def _facts(entry: SnapshotEntry) -> Mapping[str, Json]:
    facts = entry.facts.get("restructuring")  # releases before there were triggers wrote none
    return facts if isinstance(facts, dict) else {}


def _request(entry: SnapshotEntry) -> Mapping[str, Json] | None:
    return cast("Mapping[str, Json] | None", _facts(entry).get("request"))


def _kind(request: Mapping[str, Json]) -> Kind:
    return Kind(str(request.get("kind", Kind.CONSOLIDATION)))  # releases before there were expansions wrote none


def _from_before_new_classes(entries: Sequence[SnapshotEntry], newest: SnapshotEntry) -> list[SnapshotEntry]:
    """Those from no later than the trigger of `newest` says, that know a class; none where nothing is new."""
    at_records = _facts(newest).get("base_at_records")
    if not isinstance(at_records, int):
        return []
    return [
        entry for entry in entries if cast(int, entry.facts["records_consumed"]) <= at_records and class_names(entry)
    ]
