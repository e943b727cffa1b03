"""The hold-outs of a state's newest whole snapshot, for whoever judges versions beside a running learner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from consumers.topics import MAIN_BRANCH
from model_store.snapshot_store import SnapshotStore
from pipeline.evaluation.forgetting import ForgettingHistory
from pipeline.evaluation.hold_out import HoldOut
from pipeline.sample import InputSpec
from pipeline.settings import InputSettings, LearnerSettings
from pipeline.state import StateTree
from pipeline.stream_learner import spec_of
from pipeline.user_error import UserError

# A learner prunes while we look: of a list of snapshots none may be there any more, and the next list has others.
_LOOKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StateHoldOuts:
    """Held-out samples as the state reads them, and how well each class was known at best."""

    sequence: int  # of the snapshot
    spec: InputSpec
    input_settings: InputSettings
    hold_out: HoldOut
    best: Mapping[str, float]  # {class: best accuracy so far}, of classes evaluated on enough samples


def newest_hold_outs(state: Path, stream: str) -> StateHoldOuts | None:
    """None where no sample was learnt yet. Nothing is locked and nothing written.

    `UserError` where the folder holds no whole snapshot, or another stream's or branch's.
    """
    store = SnapshotStore(state / "snapshots")
    for _ in range(_LOOKS):
        found = store.newest_whole()
        if found.snapshot is not None:
            break
    else:
        raise UserError(f"{state} holds no whole snapshot; `palimpsest learn --state {state}` writes them")
    snapshot = found.snapshot
    whose = snapshot.facts.get("stream"), snapshot.facts.get("branch")
    if whose != (stream, MAIN_BRANCH):
        raise UserError(
            f"{state} holds the state of stream {whose[0]!r} (branch {whose[1]!r}), versions of {stream!r} are made "
            f"of its branch {MAIN_BRANCH!r}: give another --state"
        )
    spec = spec_of(snapshot.state)
    if spec is None:
        return None
    settings = LearnerSettings.model_validate(snapshot.facts["settings"])
    hold_out, history = HoldOut(settings.hold_out), ForgettingHistory(settings.evaluation)
    hold_out.load_state(cast(StateTree, snapshot.state["hold_out"]))
    history.load_state(cast(StateTree, snapshot.state["forgetting"]))
    return StateHoldOuts(
        sequence=snapshot.sequence,
        spec=spec,
        input_settings=settings.input,
        hold_out=hold_out,
        best=history.best,
    )
