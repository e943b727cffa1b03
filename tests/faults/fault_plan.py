"""What is to befall one run of a learner, told to its process in an environment variable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

VARIABLE = "FAULT_PLAN"

# In the order in which a learner comes to them (model_store/fault_points.py).
START_POINTS = ("start.found", "start.fenced", "start.claimed", "start.loaded", "start.told", "start.sought")
STEP_POINT = "step.done"
COMMIT_POINTS = (
    "commit.begun",
    "snapshot.begun",
    "snapshot.tensors_written",
    "snapshot.state_written",
    "snapshot.manifest_written",
    "snapshot.renamed",
    "commit.written",
    "transaction.begun",
    "transaction.sent",
    "transaction.offsets_added",
    "transaction.committed",
    "commit.told",
    "commit.pruned",
)
ALL_POINTS = (*START_POINTS, STEP_POINT, *COMMIT_POINTS)

Deed = Literal["SIGKILL", "SIGSTOP", "SIGTERM", "limit_files", "lift_limit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens at the nth time (from 1) that a point is reached.

    A signal is sent by the process to itself. `limit_files`: no file may grow past `FaultPlan.file_bytes` from now on,
    which the kernel refuses as a full disk is refused; `lift_limit`: it may again.
    """

    point: str
    nth: int = 1
    deed: Deed = "SIGKILL"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """`step_seconds`: a pause after each update, so that a small network takes as long over a record as a large one,
    and kills at random moments meet every part of the loop."""

    journal: Path
    faults: tuple[Fault, ...] = ()
    file_bytes: int = 0
    step_seconds: float = 0.0

    def encode(self) -> str:
        return json.dumps({**asdict(self), "journal": str(self.journal)})

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        plan = json.loads(environment[VARIABLE])
        return cls(
            journal=Path(plan["journal"]),
            faults=tuple(Fault(**fault) for fault in plan["faults"]),
            file_bytes=plan["file_bytes"],
            step_seconds=plan["step_seconds"],
        )
