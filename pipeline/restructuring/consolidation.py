"""Deep Model Consolidation: two teachers, one student, unlabelled rows; snapshot's state -> snapshot's state.

Zhang, Zhang, Ghosh, Li, Tasci, Heck, Zhang, Kuo 2020, "Class-incremental Learning via Deep Model Consolidation", WACV,
arXiv:1903.07864. The old teacher is the network from before the new classes came; the specialist learns the new
classes alone; the student regresses on what both say of rows without labels (`distillation.py`). No old record is
needed.

Where we differ: each teacher is sharp among its own classes and just as loud about the other's, and the paper's student
copies that. A gate (`gate.py`), calibrated teachers (`combination.py`), a specialist that hears outliers
(`specialist.py`), replay of the reservoir while distilling, and the learner's own network as a third voice and as what
the student begins as, are settings; `PLAIN_DMC` has none of them.

The same inputs give the same bits, however often the job was stopped and resumed. It draws by (seed, purpose, step).

Legend: N = rows, K = the student's classes
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.network import Network
from pipeline.restructuring.activations import layers_with_positions
from pipeline.restructuring.combination import Combination, Said, Scales, mean_of_both
from pipeline.restructuring.consolidation_settings import ConsolidationSettings
from pipeline.restructuring.feature_gate import FeatureGate, heard
from pipeline.restructuring.gate import GateTraining
from pipeline.restructuring.labelled_rows import LabelledRows, balanced, gather_new, gather_unlabelled
from pipeline.restructuring.progress import Progress, never, nothing
from pipeline.restructuring.refused import Refused
from pipeline.restructuring.replaced_network import reservoir_rows
from pipeline.restructuring.specialist import SpecialistTraining
from pipeline.restructuring.student import Lesson, StudentTraining, new_student
from pipeline.restructuring.teacher import Answers, Teacher
from pipeline.state import StateTree, fingerprint

_BESIDE = ("hints", "attention", "relational")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a consolidation is a function of, besides its settings."""

    class_names: Sequence[str]  # the student's, by column
    columns: int  # of the student's head; spare ones are not distilled
    old: Teacher
    specialist: Teacher | LabelledRows  # ready, or the records from which it learns the classes that `old` lacks
    unlabelled: npt.NDArray[np.generic]  # (N, ...)
    parent: Teacher | None = None  # the learner's own network, which knows all of the student's classes
    reservoir: LabelledRows | None = None  # samples of old classes and new; None: there are none
    pretrained: Network | None = None  # whose body fresh networks begin with; None: they are drawn

    def fingerprint(self) -> str:
        """One SHA-256 over all of it."""
        rows: dict[str, object] = {"columns": self.columns, "names": list(self.class_names), "old": self.old.state()}
        if self.pretrained is not None:
            rows["pretrained"] = dict(self.pretrained.state_dict())
        rows["unlabelled"] = torch.from_numpy(np.ascontiguousarray(self.unlabelled))
        for name, part in (("specialist", self.specialist), ("parent", self.parent), ("reservoir", self.reservoir)):
            if isinstance(part, LabelledRows):
                rows[name] = {"x": torch.from_numpy(np.ascontiguousarray(part.x)), "labels": list(part.labels)}
            elif part is not None:
                rows[name] = part.state()
        return fingerprint(rows)


class Consolidation:
    """The job. `run` it; stopped, it is resumed by another one of the same inputs and settings that loads its state.

    1. The specialist learns the new classes from their records, with a head of its own over these. So does the gate,
       or it is fitted on what both teachers make of the rows, once the specialist has learnt.
    2. Both teachers are asked about every unlabelled row, once; what they say is put side by side and kept.
    3. The student is distilled.
    """

    def __init__(self, inputs: Inputs, settings: ConsolidationSettings, *, device: torch.device, seed: int) -> None:
        """`Refused` where no good student could come of it."""
        self._inputs, self._settings, self._device, self._seed = inputs, settings, device, seed
        self._known: Mapping[str, int] = {name: column for column, name in enumerate(inputs.class_names)}
        _refuse(inputs, settings)
        for teacher in (inputs.old, inputs.parent):
            if teacher is not None:
                teacher.network.to(device)
        self._specialist_training: SpecialistTraining | None = None
        self._gate: GateTraining | None = None
        self._feature_gate: FeatureGate | None = None
        self._asked: tuple[Answers, Answers] | None = None
        self._student: StudentTraining | None = None
        self._scales: Scales | None = None
        if isinstance(inputs.specialist, Teacher):
            inputs.specialist.network.to(device)
        else:
            new = [name for name in inputs.class_names if name not in inputs.old.class_names]
            stored_old = self._stored_old()
            hears = stored_old if settings.specialist_hears == "outliers" else stored_old[:0]
            keep = settings.specialist_initialisation == "old_teacher"
            self._specialist_training = SpecialistTraining(
                new,
                inputs.specialist,
                hears,
                inputs.old.network,
                inputs.old.network if keep else inputs.pretrained,
                settings,
                device=device,
                seed=seed,
            )
            if settings.gated and not self._gate_hears_features:
                self._gate = GateTraining(
                    inputs.unlabelled,
                    inputs.specialist.x,
                    stored_old,
                    inputs.old.network,
                    settings,
                    device=device,
                    seed=seed,
                )

    def run(self, *, progress: Progress = nothing, stop: Callable[[], bool] = never) -> Network | None:
        """The student, in eval mode; None where it was stopped before its end. `stop` is asked before every step."""
        # 1.
        for stage, learning in (("specialist", self._specialist_training), ("gate", self._gate)):
            while learning is not None and not learning.training.is_done:
                if stop():
                    return None
                learning.step()
                progress(stage, learning.training.done, learning.training.steps)
        # 2.
        if stop():
            return None
        student = self._student = self._student or self._begin_student()
        # 3.
        while not student.training.is_done:
            if stop():
                return None
            student.step()
            progress("student", student.training.done, student.training.steps)
        if not all(bool(tensor.isfinite().all()) for tensor in student.network.parameters()):
            raise Refused("the student's weights are not finite: lower learning_rate")
        return student.network.eval()

    def did_without(self) -> list[str]:
        """What was asked for and could not be done: nothing; where a part of it cannot be done, the job is refused."""
        return []

    def specialist(self) -> Teacher:
        """After step 1."""
        if self._specialist_training is None:
            assert isinstance(self._inputs.specialist, Teacher)
            return self._inputs.specialist
        return self._specialist_training.teacher()

    def side_by_side(self, x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """What the teachers together say of rows, as the student is to say it: (N, K). After step 1."""
        logits_NK = self._taught(x, self._said(x))
        return cast("npt.NDArray[np.float32]", logits_NK.cpu().numpy())

    def scales(self) -> Scales:
        """Of the teachers and the gate, fitted on the reservoir where there is something to be fitted. After step 1."""
        if self._scales is None:
            self._scales = Scales()
            if self._settings.calibrated or self._settings.gated:
                reservoir = self._inputs.reservoir
                assert reservoir is not None, "refused at the beginning"
                y_B = torch.from_numpy(self._columns(reservoir.labels))
                self._scales = self._combination().fitted(self._said(reservoir.x), y_B)
        return self._scales

    def state(self) -> StateTree:
        """What has been done so far, on the CPU. Teachers' answers are not in it: they are given again, and a gate that
        learns from features is fitted to them again."""
        state: StateTree = {"of": self._of}
        if self._specialist_training is not None:
            state["specialist"] = self._specialist_training.state()
        if self._gate is not None:
            state["gate"] = self._gate.state()
        if self._student is not None:
            state["student"] = self._student.state()
        return state

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`. `Refused` for that of another job."""
        if state["of"] != self._of:
            raise Refused(
                "what was begun is of a consolidation of other rows, teachers or settings: remove it, and begin anew"
            )
        if self._specialist_training is not None:
            self._specialist_training.load_state(cast(StateTree, state["specialist"]))
        if self._gate is not None:
            self._gate.load_state(cast(StateTree, state["gate"]))
        if "student" in state:
            self._student = self._begin_student()
            self._student.load_state(cast(StateTree, state["student"]))

    # -- the steps' parts ------------------------------------------------------------------------------------------

    @cached_property
    def _of(self) -> str:  # all rows go through it, and it is asked for each time that the job is saved
        named = f"{self._inputs.fingerprint()} {self._settings.model_dump_json()} {self._seed}"
        return hashlib.sha256(named.encode()).hexdigest()

    def _stored_old(self) -> npt.NDArray[np.generic]:
        """The reservoir's samples of the old classes."""
        reservoir = self._inputs.reservoir
        if reservoir is None:
            return self._inputs.unlabelled[:0]
        old = [row for row, label in enumerate(reservoir.labels) if label in self._inputs.old.class_names]
        return reservoir.x[old]

    def _begin_student(self) -> StudentTraining:
        """Step 2, and the student before its first step."""
        inputs, settings = self._inputs, self._settings
        old, specialist = self._asked_of_unlabelled()
        replayed = self._replayed()
        lesson = Lesson(
            x=inputs.unlabelled,
            target_NK=self._taught(inputs.unlabelled, self._said(inputs.unlabelled, old, specialist)),
            answers=[old, specialist] if settings.distillation in _BESIDE else [],
            layers=self._layers(),
            replay_x=replayed.x,
            replay_y=self._columns(replayed.labels),
        )
        self._asked = None  # of 50,000 rows, features are hundreds of megabytes
        student = new_student(
            inputs.old,
            inputs.class_names,
            inputs.columns,
            settings,
            self._seed,
            parent=inputs.parent,
            fresh=inputs.pretrained,
        )
        return StudentTraining(student, lesson, settings, device=self._device, seed=self._seed)

    def _taught(self, x: npt.NDArray[np.generic], said: Said) -> Tensor:
        """(N, K) on the device, each row's mean zero."""
        taught_NK = self._combination().logits(said, self.scales())
        parent, weight = self._inputs.parent, self._settings.parent_weight
        return taught_NK if parent is None or not weight else mean_of_both(taught_NK, parent.ask(x).logits_BC, weight)

    def _replayed(self) -> LabelledRows:
        """What the student hears beside what is distilled."""
        reservoir, records = self._inputs.reservoir, self._inputs.specialist
        if reservoir is None:
            return LabelledRows(x=self._inputs.unlabelled[:0], labels=())
        if self._settings.replays == "reservoir" or not isinstance(records, LabelledRows):
            return reservoir
        return balanced(_joined(reservoir.of(self._inputs.old.class_names), records))

    def _layers(self) -> Sequence[str]:
        """Whose attention the student takes over."""
        return layers_with_positions(self._inputs.old.network) if self._settings.distillation == "attention" else []

    def _asked_of_unlabelled(self) -> tuple[Answers, Answers]:
        """What each teacher says of them, asked once."""
        if self._asked is None:
            features = self._settings.distillation in ("hints", "relational") or self._gate_hears_features
            old, specialist = (
                teacher.ask(self._inputs.unlabelled, features=features, layers=self._layers())
                for teacher in (self._inputs.old, self.specialist())
            )
            self._asked = (old, specialist)
        return self._asked

    def _said(self, x: npt.NDArray[np.generic], old: Answers | None = None, specialist: Answers | None = None) -> Said:
        old = old or self._inputs.old.ask(x, features=self._gate_hears_features)
        specialist = specialist or self.specialist().ask(x, features=self._gate_hears_features)
        gate_B: Tensor | None = None
        if self._gate is not None:
            gate_B = self._gate.log_odds(x)
        elif self._gate_hears_features:
            gate_B = self._fitted_gate().log_odds(heard(old, specialist))
        return Said(old_BO=old.logits_BC, specialist_BN=specialist.logits_BC, gate_B=gate_B)

    @property
    def _gate_hears_features(self) -> bool:
        learns_from = self._settings.gate_learns_from
        if learns_from == "auto":
            learns_from = "features" if self._inputs.old.network.spec.kind == "text" else "rows"
        return self._settings.gated and learns_from == "features"

    def _fitted_gate(self) -> FeatureGate:
        if self._feature_gate is None:
            records = self._inputs.specialist
            assert isinstance(records, LabelledRows), "refused at the beginning"
            teachers = (self._inputs.old, self.specialist())
            of_records, of_stored = (
                heard(*(teacher.ask(x, features=True) for teacher in teachers)) for x in (records.x, self._stored_old())
            )
            of_unlabelled = heard(*self._asked_of_unlabelled())
            self._feature_gate = FeatureGate(of_unlabelled, of_records, of_stored, self._settings.gate_decay)
        return self._feature_gate

    def _combination(self) -> Combination:
        return Combination(
            self._columns(self._inputs.old.class_names).tolist(),
            self._columns(self.specialist().class_names).tolist(),
            len(self._inputs.class_names),
        )

    def _columns(self, labels: Sequence[str]) -> npt.NDArray[np.int64]:
        return np.array([self._known[label] for label in labels], dtype=np.int64)


def consolidation_of(
    parent: StateTree,
    base: StateTree,
    records: Iterable[tuple[npt.NDArray[np.generic], str]] | None,
    unlabelled: Iterable[npt.NDArray[np.generic]],
    settings: ConsolidationSettings,
    *,
    device: torch.device,
    seed: int,
    pretrained: Network | None = None,
) -> Consolidation:
    """The job for a stream learner's state (`StreamLearner.state()`), `parent`.

    `base`: the state of the last snapshot before the new classes' first record. `records`: single samples of the new
    classes with their labels, as the log has them between the two, without those that the hold-out chooses; None: the
    log does not have them any more, and the reservoir's are taken. `unlabelled`: single samples, without those that the
    hold-out chooses. `pretrained`: a network that `build_network` made with a checkpoint's weights, where the stream's
    began so: fresh ones begin with its body, too.
    """
    if not parent["learner"] or not base["learner"]:
        raise Refused("a snapshot from before the first record has nothing to consolidate: let the learner learn first")
    learner = cast(StateTree, parent["learner"])
    names = cast("list[str]", cast(StateTree, learner["classes"])["names"])
    old = Teacher.from_state(cast(StateTree, base["learner"]))
    reservoir = reservoir_rows(learner)
    new = set(names) - set(old.class_names)
    inputs = Inputs(
        class_names=names,
        columns=cast(int, cast(StateTree, learner["architecture"])["columns"]),
        old=old,
        specialist=gather_new(records, reservoir, new, settings.most_records, seed),
        parent=Teacher.from_state(learner),
        unlabelled=gather_unlabelled(unlabelled, settings.most_unlabelled, seed),
        reservoir=reservoir,
        pretrained=pretrained,
    )
    return Consolidation(inputs, settings, device=device, seed=seed)


def _kind(network: Network) -> str:
    """Backbone and options: networks of one kind have the same layers."""
    return f"{network.architecture['backbone']} {network.architecture['options']}"


def _joined(first: LabelledRows, second: LabelledRows) -> LabelledRows:
    return LabelledRows(x=np.concatenate([first.x, second.x]), labels=(*first.labels, *second.labels))


def _refuse(inputs: Inputs, settings: ConsolidationSettings) -> None:
    """Each with what is wrong and the way out."""
    old, names = inputs.old, list(inputs.class_names)
    missing = [name for name in old.class_names if name not in names]
    if missing:
        raise Refused(
            f"class {missing[0]!r} of the old teacher is none of the student's: take a base from the same stream"
        )
    new = [name for name in names if name not in old.class_names]
    spec = old.network.spec
    if isinstance(inputs.specialist, Teacher):
        taught = inputs.specialist
        unknown = [name for name in new if name not in taught.class_names]
        if unknown:
            raise Refused(f"no teacher knows class {unknown[0]!r}: give one that does")
        if taught.network.spec != spec:
            raise Refused(f"one teacher takes {spec}, the other {taught.network.spec}: they are not of one stream")
        if settings.distillation == "attention" and _kind(taught.network) != _kind(old.network):
            raise Refused(
                f"attention is taken over layer by layer, and the teachers are of two kinds ({_kind(old.network)} and "
                f"{_kind(taught.network)}): choose another distillation"
            )
        if settings.gated or settings.specialist_hears != "new":
            raise Refused(
                "a gate, and a specialist that hears outliers, learn from the new classes' records, and two ready "
                "teachers have none: set gated to false and specialist_hears to new"
            )
    else:
        if not new:
            raise Refused(
                f"there is no class that the old teacher does not know ({len(names)} classes): wait until one comes"
            )
        silent = [name for name in new if name not in inputs.specialist.labels]
        if silent:
            raise Refused(
                f"there is no record of class {silent[0]!r} to train a specialist on: let more of them come, or "
                "take the reservoir's samples"
            )
    rows = len(inputs.unlabelled)
    if rows < settings.min_unlabelled:
        raise Refused(
            f"{rows} unlabelled rows are too few for a good student, at least {settings.min_unlabelled} are wanted: "
            "send more, or lower min_unlabelled"
        )
    if tuple(inputs.unlabelled.shape[1:]) != spec.shape or inputs.unlabelled.dtype != np.dtype(spec.dtype):
        raise Refused(
            f"unlabelled rows are {inputs.unlabelled.dtype} of shape {inputs.unlabelled.shape[1:]}, the teachers take "
            f"{spec.dtype} of shape {spec.shape}: send the same kind of payload"
        )
    if settings.distillation == "attention" and old.network.body.compact is not old.network.body:
        raise Refused(
            "attention is taken over layer by layer, and the old teacher has grown sub-modules that the student lacks: "
            "choose another distillation"
        )
    if settings.distillation == "attention" and not layers_with_positions(old.network):
        raise Refused(
            f"attention transfer needs layers with positions, and backbone {old.network.body.name!r} has none: "
            "choose another distillation"
        )
    wants = [
        what
        for what, wanted in (
            ("calibrated", settings.calibrated),
            ("replay_weight", settings.replay_weight > 0),
            ("specialist_hears", settings.specialist_hears == "outliers"),
            ("gated", settings.gated),
        )
        if wanted
    ]
    held = set(inputs.reservoir.labels) if inputs.reservoir is not None else set[str]()
    unheld = [name for name in names if name not in held]
    if wants and unheld:
        raise Refused(
            f"{wants[0]} needs samples of every class, and the reservoir has none of {unheld[0]!r}: leave it out, or "
            "begin a new state with a larger replay.capacity"
        )
