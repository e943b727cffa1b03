"""How the learner of a state folder stood when it wrote a snapshot, for whoever draws it from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

from pydantic import ValidationError
from torch import Tensor

from consumers.page.standing import Standing
from model_store.manifest import NotWhole
from model_store.snapshot_choice import chosen_snapshot
from model_store.snapshot_store import SnapshotEntry, SnapshotStore
from pipeline.evaluation.forgetting import ForgettingHistory
from pipeline.settings import EvaluationSettings
from pipeline.state import Json, StateTree
from pipeline.user_error import UserError

# A learner prunes while we look: of a list of snapshots none may be there any more, and the next list has others.
_LOOKS = 3
_RESERVOIR_LABELS = "learner/reservoir/y"  # logit columns
_WANTED = ("forgetting", _RESERVOIR_LABELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateStanding:
    """Of which snapshot it is, and what it says."""

    entry: SnapshotEntry
    standing: Standing

    @property
    def stream(self) -> str:
        return str(self.entry.facts.get("stream"))

    @property
    def branch(self) -> str:
        return str(self.entry.facts.get("branch"))


def newest_standing(state: Path, *, known: SnapshotEntry | None = None) -> StateStanding | None:
    """Nothing is locked, nothing written, and no weights are held in memory. None: the newest is still `known`.

    `UserError` where the folder holds no whole snapshot.
    """
    store = SnapshotStore(state / "snapshots")
    for _ in range(_LOOKS):
        for entry in reversed(store.entries()):
            if known is not None and entry.number == known.number and entry.sha256 == known.sha256:
                return None
            try:
                return StateStanding(entry=entry, standing=_standing(store, entry))
            except NotWhole:  # decayed, or pruned meanwhile
                continue
    raise UserError(f"{state} holds no whole snapshot; `palimpsest learn --state {state}` writes them")


def standing_at(state: Path, which: str, *, option: str) -> StateStanding:
    """Of one kept snapshot, as `chosen_snapshot`. `UserError` where there is none, or it is not whole."""
    store = SnapshotStore(state / "snapshots")
    entry = chosen_snapshot(store, which, option=option, state_option="--state")
    try:
        return StateStanding(entry=entry, standing=_standing(store, entry))
    except NotWhole as problem:
        raise UserError(f"snapshot {which} of {state} is not whole: {problem.why}; choose another one") from None


def _standing(store: SnapshotStore, entry: SnapshotEntry) -> Standing:
    part = store.load_part(entry, _WANTED)
    # of the settings these alone: the rest may be of another release, whose learner this one is shown beside
    stored = cast("dict[str, Json]", entry.facts["settings"])
    try:
        settings = EvaluationSettings.model_validate(stored["evaluation"])
    except ValidationError as error:
        made_by = cast("dict[str, Json]", entry.facts.get("environment") or {}).get("palimpsest")
        raise UserError(
            f"{entry.path} is of release {made_by}, whose evaluation settings are not those of this one "
            f"({version('palimpsest')}); have it shown by a palimpsest of that release"
        ) from error
    history = ForgettingHistory(settings)
    history.load_state(cast(StateTree, part["forgetting"]))
    return Standing(
        report=history.newest_report(),
        course=history.course,
        replay=_replay_counts(part, entry.facts),
        records_consumed=cast(int, entry.facts["records_consumed"]),
    )


def _replay_counts(part: StateTree, facts: Mapping[str, Json]) -> dict[str, int]:
    """{class: samples}, also of those that the reservoir has lost; {}: nothing was learnt yet."""
    classes = cast(Sequence[str], facts.get("classes") or [])
    if "learner" not in part:
        return dict.fromkeys(classes, 0)
    reservoir = cast("dict[str, dict[str, Tensor]]", part["learner"])["reservoir"]
    counts = Counter(reservoir["y"].tolist())
    return {name: counts[column] for column, name in enumerate(classes)}
