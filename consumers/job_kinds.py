"""What a job does in the way of its kind: which job of the pipeline it runs, and what that needs and takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from pipeline.network import Network
from pipeline.restructuring.consolidation import consolidation_of
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.expansion import expansion_of
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.restructuring.progress import Progress
from pipeline.restructuring.trigger import Kind
from pipeline.settings import LearnerSettings
from pipeline.state import StateTree


class PipelineJob(Protocol):
    """What `Consolidation` and `Expansion` have alike."""

    def run(self, *, progress: Progress, stop: Callable[[], bool]) -> Network | None:
        """The network, in eval mode; None where it was stopped. `Refused` where no good one could come of it."""

    def did_without(self) -> list[str]:
        """After `run`: what was asked for and could not be done; a line each, for a person."""

    def state(self) -> StateTree:
        """What has been done so far; "of" in it says of which inputs and settings."""

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`. `Refused` for that of another job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a job begins with. Both iterables read the log, once."""

    parent: StateTree
    base: StateTree | None  # None: the kind needs no old teacher
    new_classes: Sequence[str]  # that the parent knows and the base does not
    records: Iterable[tuple[npt.NDArray[np.generic], str]] | None  # theirs; None: the log was cut
    unlabelled: Iterable[npt.NDArray[np.generic]]
    learner_settings: LearnerSettings  # those that the parent was learnt with
    device: torch.device


class JobKind(ABC):
    """One kind of job, with its settings."""

    kind: ClassVar[Kind]
    needs_old_teacher: ClassVar[bool]  # the base's whole state, not only which classes it knew and its offsets
    needs_unlabelled: ClassVar[bool]  # without a topic of records without labels there is no job

    @abstractmethod
    def begin(self, given: Given) -> PipelineJob:
        """`Refused` where no good network could come of it; what reading raises."""

    @abstractmethod
    def taken(self, rows: int) -> int:
        """Of so many unlabelled rows, how many it works on."""


class ConsolidationKind(JobKind):
    """Deep Model Consolidation: one compact network of the old classes and the new ones."""

    kind = Kind.CONSOLIDATION
    needs_old_teacher = True
    needs_unlabelled = True

    def __init__(self, settings: ConsolidationSettings) -> None:
        self._settings = settings

    def begin(self, given: Given) -> PipelineJob:
        assert given.base is not None, "a consolidation has an old teacher"
        return consolidation_of(
            given.parent,
            given.base,
            given.records,
            given.unlabelled,
            self._settings,
            device=given.device,
            seed=given.learner_settings.seed,
        )

    def taken(self, rows: int) -> int:
        return min(rows, self._settings.most_unlabelled)


class ExpansionKind(JobKind):
    """EDE-Net: the network grows by a sub-module that knows the new classes."""

    kind = Kind.EXPANSION
    needs_old_teacher = False
    needs_unlabelled = False

    def __init__(self, settings: ExpansionSettings) -> None:
        self._settings = settings

    def begin(self, given: Given) -> PipelineJob:
        return expansion_of(
            given.parent,
            given.new_classes,
            given.records,
            given.unlabelled,
            self._settings,
            learner_settings=given.learner_settings,
            device=given.device,
            seed=given.learner_settings.seed,
        )

    def taken(self, rows: int) -> int:
        settings = self._settings
        hears = settings.mixmatch_weight or settings.pseudo_weight or settings.prune is not None  # distilled on them
        return min(rows, settings.most_unlabelled) if hears else 0
