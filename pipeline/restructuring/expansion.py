"""EDE-Net: the network grows by a small sub-module that knows the new classes; snapshot's state -> snapshot's state.

After EDE-Net and the network that it makes smaller: Yan, Xie, He 2021, "DER: Dynamically Expandable Representation for
Class Incremental Learning", CVPR, arXiv:2103.16788. In two stages:

    1. a temporary network of the compact kind learns the new classes (`temporary_network.py`), loses most of its
       channels (`pruning.py`), and learns again what it said before (`pruned_sub_module.py`);
    2. what is left becomes a sub-module beside the frozen ones that there are (`grown_network.py`), and the head over
       all of them is tuned on as many rows of each class (`joint_head.py`).

Where we differ is said in these files. Unlabelled rows help in each step, and may be missing; texts cannot be mixed up,
so that a temporary network of texts does not hear them.

The same inputs give the same bits, however often the job was stopped and resumed. It draws by (seed, purpose, step).

Legend: N = rows, U = unlabelled rows, C = classes, O = old ones
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.backbones.sub_modules import MOST_SUB_MODULES
from pipeline.device import to_device
from pipeline.network import Network
from pipeline.precision import Precision
from pipeline.restructuring import mixmatch
from pipeline.restructuring.expansion_settings import ExpansionSettings
from pipeline.restructuring.grown_network import grown
from pipeline.restructuring.joint_head import HeadTraining, begin_head
from pipeline.restructuring.labelled_rows import LabelledRows, balanced, gather_new, gather_unlabelled
from pipeline.restructuring.lesson import Lesson, RehearsalSet
from pipeline.restructuring.progress import Progress, never, nothing
from pipeline.restructuring.pruned_sub_module import PrunedTraining
from pipeline.restructuring.pruning import pruned
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.replaced_network import reservoir_rows
from pipeline.restructuring.specialist import network_like
from pipeline.restructuring.teacher import Teacher
from pipeline.restructuring.temporary_network import TemporaryTraining
from pipeline.restructuring.training import Training
from pipeline.restructuring.warm_start import warm_start
from pipeline.settings import AugmentationSettings, LearnerSettings
from pipeline.state import StateTree, fingerprint


class _Learning(Protocol):
    training: Training

    def step(self) -> None: ...

    def state(self) -> StateTree: ...

    def load_state(self, state: StateTree) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What an expansion is a function of, besides its settings."""

    class_names: Sequence[str]  # all that were seen, by column
    new_classes: Sequence[str]
    records: LabelledRows  # of the new classes, the newest last (above `most_records` some are replaced at random)
    reservoir: LabelledRows  # samples of the old classes; those of new ones are not looked at
    unlabelled: npt.NDArray[np.generic]  # (U, ...); may be none
    present: Teacher | None  # the network that grows; None: there is none, and the sub-module is the network
    like: Network  # the kind of the temporary network: its compact body
    columns: int  # of the grown network's head
    augmentation: AugmentationSettings
    precision: Precision = "auto"
    pretrained: Network | None = None  # whose body the temporary network begins with; None: it is drawn

    def fingerprint(self) -> str:
        """One SHA-256 over all of it."""
        parts: dict[str, object] = {
            "names": list(self.class_names),
            "new": list(self.new_classes),
            "unlabelled": torch.from_numpy(np.ascontiguousarray(self.unlabelled)),
            "like": self.like.architecture,
            "columns": self.columns,
            "augmentation": self.augmentation.model_dump(mode="json"),
            "precision": self.precision,
        }
        for name, rows in (("records", self.records), ("reservoir", self.reservoir)):
            parts[name] = {"x": torch.from_numpy(np.ascontiguousarray(rows.x)), "labels": list(rows.labels)}
        if self.present is not None:
            parts["present"] = self.present.state()
        if self.pretrained is not None:
            parts["pretrained"] = dict(self.pretrained.state_dict())
        return fingerprint(parts)


class Expansion:
    """The job. `run` it; stopped, it is resumed by another one of the same inputs and settings that loads its state.

    1. The temporary network learns.
    2. It is pruned, where its backbone can be.
    3. The pruned network learns what the temporary one says.
    4. The network grows by it; the labels of the unlabelled rows are guessed, and the joint head is tuned.
    """

    def __init__(self, inputs: Inputs, settings: ExpansionSettings, *, device: torch.device, seed: int) -> None:
        """`Refused` where no good sub-module could come of it."""
        _refuse(inputs)
        self._inputs, self._settings, self._device, self._seed = inputs, settings, device, seed
        if inputs.present is not None:
            inputs.present.network.to(device)
        old = inputs.reservoir.of([name for name in inputs.class_names if name not in inputs.new_classes])
        self._lesson = Lesson(
            inputs.class_names,
            inputs.records,
            old,
            inputs.unlabelled,
            device,
        )
        self._present_UO = self._said_of_old()
        temporary = network_like(inputs.like, len(inputs.class_names), seed, "temporary", body=inputs.pretrained)
        if settings.initialisation == "newest" and inputs.present is not None:
            warm_start(
                temporary,
                inputs.present.network,
                [inputs.class_names.index(name) for name in inputs.present.class_names],
            )
        self._temporary = TemporaryTraining(
            temporary,
            self._lesson,
            self._present_UO,
            settings,
            inputs.augmentation,
            precision=inputs.precision,
            seed=seed,
        )
        self._guessed_UC: Tensor | None = None
        self._pruned: PrunedTraining | None = None
        self._head: HeadTraining | None = None

    def run(self, *, progress: Progress = nothing, stop: Callable[[], bool] = never) -> Network | None:
        """The grown network, in eval mode; None where it was stopped before its end. `stop` is asked before every
        step."""
        # 1.
        if not _learnt("temporary network", self._temporary, progress, stop):
            return None
        # 2. and 3.
        if self._settings.prune is not None and self._can_be_pruned:
            self._pruned = self._pruned or self._begin_pruned()
            if not _learnt("pruned network", self._pruned, progress, stop):
                return None
        # 4.
        self._head = self._head or self._begin_head()
        if not _learnt("joint head", self._head, progress, stop):
            return None
        network = self._head.finish()
        if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
            raise Refused("the grown network's weights are not finite: lower expansion.learning_rate")
        return network

    def did_without(self) -> list[str]:
        """After `run`: what was asked for and could not be done; a line each, for a person."""
        if self._settings.prune is None or self._can_be_pruned:
            return []
        return ["the sub-module is not pruned: its backbone has no options for one with fewer channels"]

    def state(self) -> StateTree:
        """What has been done so far, on the CPU. Guessed labels are not in it: they are guessed again."""
        state: StateTree = {"of": self._of, "temporary": self._temporary.state()}
        for name, learning in (("pruned", self._pruned), ("head", self._head)):
            if learning is not None:
                state[name] = learning.state()
        return state

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`. `Refused` for that of another job."""
        if state["of"] != self._of:
            raise Refused("what was begun is of an expansion of other rows or settings: remove it, and begin anew")
        self._temporary.load_state(cast(StateTree, state["temporary"]))
        if "pruned" in state:
            self._pruned = self._begin_pruned()
            self._pruned.load_state(cast(StateTree, state["pruned"]))
        if "head" in state:
            self._head = self._begin_head()
            self._head.load_state(cast(StateTree, state["head"]))

    # -- the steps' parts ------------------------------------------------------------------------------------------

    @property
    def _can_be_pruned(self) -> bool:
        return self._temporary.network.body.measured_options is not None

    @cached_property
    def _of(self) -> str:  # all rows go through it, and it is asked for each time that the job is saved
        named = f"{self._inputs.fingerprint()} {self._settings.model_dump_json()} {self._seed}"
        return hashlib.sha256(named.encode()).hexdigest()

    def _said_of_old(self) -> Tensor | None:
        """(U, O): what the present network says of the unlabelled rows, among the old classes."""
        present, old = self._inputs.present, self._lesson.old
        if present is None or not len(old) or not len(self._inputs.unlabelled):
            return None
        names = [self._inputs.class_names[column] for column in old.tolist()]
        columns = [list(present.class_names).index(name) for name in names]
        return present.ask(self._inputs.unlabelled).logits_BC[:, columns].float().softmax(dim=1)

    def _guessed(self) -> Tensor:
        """(U, C), of no row where nobody hears them. After step 1."""
        if self._guessed_UC is None:
            unlabelled = self._inputs.unlabelled
            if not self._settings.pseudo_weight:
                unlabelled = unlabelled[:0]
            teacher = Teacher(self._temporary.network, self._inputs.class_names)
            said_UC = teacher.ask(unlabelled).logits_BC.float().softmax(dim=1)
            if self._present_UO is not None and len(unlabelled):
                said_UC = mixmatch.put_together(said_UC, self._present_UO, self._lesson.old)
            if self._settings.align_guesses:
                said_UC = mixmatch.aligned(said_UC)
            self._guessed_UC = mixmatch.sharpened(said_UC, self._settings.sharpening)
        return self._guessed_UC

    def _begin_pruned(self) -> PrunedTraining:
        settings = self._settings
        assert settings.prune is not None
        temporary = self._temporary.network
        return PrunedTraining(
            pruned(temporary, settings.prune, ranking=settings.ranking, seed=self._seed),
            temporary,
            self._lesson,
            settings,
            self._inputs.augmentation,
            precision=self._inputs.precision,
            seed=self._seed,
        )

    def _begin_head(self) -> HeadTraining:
        inputs, settings = self._inputs, self._settings
        guessed_UC = self._guessed()  # by the temporary network, before it may leave the device
        sub_module = (self._temporary if self._pruned is None else self._pruned).network.cpu()
        if inputs.present is None:
            joint = network_like(sub_module, inputs.columns, self._seed, "alone", body=sub_module)
        else:
            present = inputs.present.network
            joint = grown(present, sub_module, freeze_old=settings.sub_modules_share is None)
            if joint.columns < inputs.columns:
                joint.grow(inputs.columns)
        heard = inputs.present.class_names if inputs.present is not None and settings.head_begins_as == "both" else ()
        begin_head(joint, sub_module, len(heard), len(inputs.class_names))
        rehearsed = self._rehearsal_set()
        return HeadTraining(
            joint,
            RehearsalSet(
                x=to_device(rehearsed.x, self._device),
                y=self._lesson.columns(rehearsed),
                unlabelled=self._lesson.unlabelled,
                guessed_UC=guessed_UC,
                classes=len(inputs.class_names),
            ),
            settings,
            inputs.augmentation,
            precision=inputs.precision,
            seed=self._seed,
        )

    def _rehearsal_set(self) -> LabelledRows:
        """As many rows of each class as the reservoir has on average: its samples of the old ones, of the new ones the
        newest records."""
        inputs = self._inputs
        each = (
            max(1, len(inputs.reservoir) // len(inputs.class_names)) if len(inputs.reservoir) else len(inputs.records)
        )
        chosen: list[LabelledRows] = []
        for name in inputs.class_names:
            if name in inputs.new_classes:
                of_class = inputs.records.of([name])
                chosen.append(of_class[max(0, len(of_class) - each) :])
            else:
                chosen.append(inputs.reservoir.of([name])[:each])
        labels = tuple(label for rows in chosen for label in rows.labels)
        return balanced(LabelledRows(x=np.concatenate([rows.x for rows in chosen]), labels=labels))


def expansion_of(
    parent: StateTree,
    new_classes: Sequence[str],
    records: Iterable[tuple[npt.NDArray[np.generic], str]] | None,
    unlabelled: Iterable[npt.NDArray[np.generic]],
    settings: ExpansionSettings,
    *,
    learner_settings: LearnerSettings,
    device: torch.device,
    seed: int,
    pretrained: Network | None = None,
) -> Expansion:
    """The job for a stream learner's state (`StreamLearner.state()`), `parent`.

    `new_classes`: those that the network is to grow for. `records`: single samples of them with their labels, as the
    log has them, without those that the hold-out chooses; None: the log does not have them any more, and the
    reservoir's are taken. `unlabelled`: single samples, without those that the hold-out chooses; may be none.
    """
    if not parent["learner"]:
        raise Refused(
            "a snapshot from before the first record has nothing that could grow: let the learner learn first"
        )
    learner = cast(StateTree, parent["learner"])
    present = Teacher.from_state(learner)
    reservoir = reservoir_rows(learner)
    new = [name for name in present.class_names if name in new_classes]
    spec = present.network.spec
    rows = gather_unlabelled(unlabelled, settings.most_unlabelled, seed)
    inputs = Inputs(
        class_names=present.class_names,
        new_classes=new,
        records=gather_new(records, reservoir, new, settings.most_records, seed),
        reservoir=reservoir,
        unlabelled=rows if len(rows) else np.empty((0, *spec.shape), spec.dtype),
        present=present,
        like=present.network,
        columns=present.network.columns,
        augmentation=settings.augmentation or learner_settings.augmentation.model_copy(update={"rows": "all"}),
        precision=learner_settings.precision,
        pretrained=pretrained,
    )
    return Expansion(inputs, settings, device=device, seed=seed)


def _learnt(stage: str, learning: _Learning, progress: Progress, stop: Callable[[], bool]) -> bool:
    """Whether it was learnt to its end."""
    while not learning.training.is_done:
        if stop():
            return False
        learning.step()
        progress(stage, learning.training.done, learning.training.steps)
    return not stop()


def _refuse(inputs: Inputs) -> None:
    """Each with what is wrong and the way out."""
    spec = inputs.like.spec
    if not inputs.new_classes:
        raise Refused(f"there is no new class to grow for ({len(inputs.class_names)} classes): wait until one comes")
    silent = [name for name in inputs.new_classes if name not in inputs.records.labels]
    if silent:
        raise Refused(f"there is no record of class {silent[0]!r} to grow for: wait until more of them have come")
    old = [name for name in inputs.class_names if name not in inputs.new_classes]
    if inputs.present is not None and len(inputs.present.network.body.bodies) >= MOST_SUB_MODULES:
        raise Refused(f"the network has {MOST_SUB_MODULES} sub-modules, and none can have more: consolidate it first")
    unheld = [name for name in old if name not in inputs.reservoir.labels]
    if unheld:
        raise Refused(
            f"the head is tuned on samples of every class, and the reservoir has none of {unheld[0]!r}: a new state "
            "with a larger replay.capacity would have some"
        )
    for what, x in (("unlabelled rows", inputs.unlabelled), ("records", inputs.records.x)):
        if tuple(x.shape[1:]) != spec.shape or x.dtype != np.dtype(spec.dtype):
            raise Refused(
                f"{what} are {x.dtype} of shape {x.shape[1:]}, the network takes {spec.dtype} of shape {spec.shape}: "
                "send the same kind of payload"
            )
