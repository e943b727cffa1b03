"""What GET /status of a learner says: the figures of this moment, one small object of strict JSON.

What is not known (yet) is null. Times are Unix seconds, accuracies and differences of them ratios from 0 to 1.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

State = Literal["starting", "learning", "idle", "relearning", "away"]


class _Figures(BaseModel):
    """Frozen, and never NaN. What a later release adds is passed over: an older `palimpsest status` reads it too."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="ignore")


class WorstClass(_Figures):
    """The class with the lowest accuracy, of those with enough held-out samples for the averages."""

    name: str
    accuracy: float
    forgetting: float  # best accuracy so far - the one now
    n: int  # held-out samples


class SnapshotFigures(_Figures):
    """The newest durable one."""

    generation: int
    sequence: int
    time: float


class NetworkFigures(_Figures):
    """Its size."""

    parameters: int
    sub_modules: int


class RegisteredVersion(_Figures):
    """The newest one in MLflow that this process heard of."""

    version: str
    run_id: str


class StatusAnswer(_Figures):
    """One learner at one moment."""

    stream: str
    branch: str
    palimpsest: str  # the release
    # idle: nothing came for some seconds, and what came is learnt; relearning: what came since an adopted job's parent,
    # once more; away: the brokers do not answer. A later release may have other words.
    state: State | str
    time: float
    started_at: float
    device: str
    records_consumed: int | None = None  # since the stream's beginning
    records_per_second: float | None = None  # over the last ten seconds
    lag_records: int | None = None  # in the log after the ones read
    event_lag_seconds: float | None = None  # age of the newest record learnt, by its ce_time
    classes: int | None = None  # with a logit column
    prequential_accuracy: float | None = None
    average_accuracy: float | None = None
    average_forgetting: float | None = None
    backward_transfer: float | None = None
    worst_class: WorstClass | None = None
    evaluated_at_records: int | None = None
    snapshot: SnapshotFigures | None = None
    next_snapshot_seconds: float | None = None  # 0: it is due; None: nothing was learnt since the newest
    network: NetworkFigures | None = None
    relearning_records: int = 0  # to be learnt once more
    relearning_seconds: float | None = None  # until then, as was expected when the job was adopted
    registered_version: RegisteredVersion | None = None
    dead_letters: int = 0  # of this process
    registrations_waiting: int | None = 0  # versions that wait for MLflow
