"""The facts of a manifest: what a snapshot says about itself beside state and offsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pipeline.record import Partition
from pipeline.restructuring.trigger import RestructuringTrigger
from pipeline.settings import LearnerSettings
from pipeline.settings_section import fixed_values
from pipeline.state import Json
from pipeline.stream_learner import StreamLearner


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What this process is and runs on; it stands in every manifest."""

    stream: str
    branch: str
    topic: str
    cluster_id: str
    topic_id: str
    state_id: str
    environment: Mapping[str, Json] = field(default_factory=dict)  # versions, threads, device, precision


def settings_facts(settings: LearnerSettings) -> dict[str, Json]:
    """The settings, and those of them by themselves that a state cannot go on without."""
    fixed: dict[str, Any] = fixed_values(settings)
    return {"fixed_settings": fixed, "settings": settings.model_dump(mode="json")}


def last_records_in(facts: Mapping[str, Json]) -> dict[Partition, tuple[int, str]]:
    """Offset and checksum of the last record consumed of each partition, as `manifest_facts` wrote them."""
    return {
        Partition(topic, number): (offset, checksum)
        for topic, number, offset, checksum in cast("list[tuple[str, int, int, str]]", facts.get("last_records") or [])
    }


def decided_jobs_in(facts: Mapping[str, Json]) -> list[Json]:
    """Jobs whose answers were adopted, refused or told by then; releases before there were any wrote none."""
    return cast("list[Json]", facts.get("decided_jobs") or [])


def manifest_facts(
    process: ProcessFacts,
    learner: StreamLearner,
    settings: Mapping[str, Json],
    *,
    last_records: Mapping[Partition, tuple[int, str]],
    records_at_version: int = 0,
    version: Mapping[str, Json] | None = None,
    report_positions: Json = None,
    told_since: Json = None,
) -> dict[str, Json]:
    """The facts of a snapshot of `learner` as it is now. `settings`: of `settings_facts`, made once.

    `last_records`: offset and checksum of the last record consumed of each partition. `version`: what this snapshot is
    to become in the registry. `report_positions`, `told_since`: of `told_before.Reports`.
    """
    return {
        "stream": process.stream,
        "branch": process.branch,
        "state_id": process.state_id,
        "cluster_id": process.cluster_id,
        "topic_id": process.topic_id,
        "last_records": [[p.topic, p.number, offset, sum_] for p, (offset, sum_) in sorted(last_records.items())],
        **settings,
        "architecture": None if learner.learner is None else learner.learner.architecture,
        "classes": list(learner.class_names),
        "records_consumed": learner.records_consumed,
        "decided_jobs": learner.decided_jobs,
        "restructuring": _restructuring(learner.trigger),
        "records_at_version": records_at_version,
        "version": None if version is None else dict(version),
        "report_positions": report_positions or [],
        "told_since": told_since,
        "environment": dict(process.environment),
    }


def _restructuring(trigger: RestructuringTrigger) -> dict[str, Json]:
    """What the next job begins with, for who keeps snapshots for it and who does it (base_snapshots.py)."""
    request = trigger.request
    asked: dict[str, Json] | None = None
    if request is not None:
        asked = {"reason": str(request.reason), "at_records": request.at_records, "kind": str(request.kind)}
    return {"base_at_records": trigger.base_at_records, "request": asked}
