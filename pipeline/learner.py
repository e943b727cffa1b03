"""One update: ONE forward, ONE backward, however many retention terms.

Legend: B = incoming rows, R = rows of one draw, K = logit columns, D = width of the features
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline import keyed_randomness, retention
from pipeline.augmentation import Augmentation
from pipeline.class_index import ClassIndex
from pipeline.cuda_graph import RepeatedPasses
from pipeline.device import choose_device, to_device
from pipeline.finiteness import NotFinite
from pipeline.network import Network, build_network, choose_backbone, network_from_architecture
from pipeline.optimizer import Sgd
from pipeline.passes import Batch, Passes
from pipeline.quadratic_anchor import grown
from pipeline.reservoir import Reservoir
from pipeline.retention.term import Change, RetentionTerm
from pipeline.sample import InputSpec
from pipeline.settings import LearnerSettings, NetworkSettings
from pipeline.state import Json, StateTree
from pipeline.user_error import UserError
from pipeline.weight_average import WeightAverage

_PREDICTED_ROWS = 256  # rows of one pass when predicting: bounds memory, and is large enough to keep a device busy


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What one update saw. Tensors lie on the device: reading one waits for it, and is the caller's choice."""

    number: int  # of this update; the first is 1
    rows: int  # B
    replayed_rows: int  # of all draws together
    loss: Mapping[str, Tensor]  # scalars: "incoming", and "TERM.NAME" of each retention term
    correct_B: Tensor  # bool: this pass's prediction among the classes known before the update (test, then train)
    known_before: int  # classes that this prediction chose among: the logit columns below it
    new_classes: tuple[str, ...]
    seconds: Mapping[str, float]  # draw, forward, backward, optimizer, insert; on CUDA the time to queue the work


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What the passes of an update were told, and what that changed."""

    batch: Batch
    known_before: int
    new_classes: tuple[str, ...]
    told: float  # when, by `time.perf_counter`


class Learner:
    """Network, optimizer, reservoir, retention terms and class index, and the one update that moves them together."""

    def __init__(self, settings: LearnerSettings, spec: InputSpec) -> None:
        self.settings = settings
        self.spec = spec
        self.device = choose_device(settings.device)
        self.updates = 0  # done so far
        self._classes = ClassIndex(settings.network.max_classes)
        self._augmentation = Augmentation(settings.augmentation, spec, settings.seed)
        replay = settings.replay
        self._generator = keyed_randomness.KeyedGenerator(settings.seed)
        self._reservoir = Reservoir(replay.capacity, spec, settings.seed, self.device, replay.sampling)
        self._optimizer: Sgd
        self._attach(build_network(_network_settings(settings, spec), spec, settings.seed), momenta={})

    # -- what others may see ---------------------------------------------------------------------------------------

    @property
    def class_names(self) -> list[str]:
        """Labels by logit column."""
        return self._classes.names

    @property
    def class_columns(self) -> Mapping[str, int]:
        """{label: logit column}, live."""
        return self._classes.by_label

    @property
    def reservoir(self) -> Reservoir:
        return self._reservoir

    @property
    def architecture(self) -> dict[str, Json]:
        return self.network.architecture

    @property
    def parameters_count(self) -> int:
        """Those of frozen sub-modules too."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    @property
    def sub_modules_count(self) -> int:
        """1, but for a network that has grown."""
        return len(self.network.body.bodies)

    def launch_one_by_one(self) -> None:
        """No CUDA graph from now on, until a state is loaded: for measuring, and for comparing with it."""
        self._repeated.stop_recording()

    def predict_columns(self, x: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        """(rows, ...) in the dtype of the input spec -> (rows,) logit columns, known classes only, as a version made
        now would predict: with the averaged weights. Changes nothing, draws nothing; waits for the device."""
        known = len(self._classes)
        assert known > 0, "no class is known yet: nothing can be predicted"
        predicted: list[Tensor] = []
        self.network.eval()
        try:
            with self._served_weights(), torch.inference_mode():
                for start in range(0, len(x), _PREDICTED_ROWS):
                    logits_BK, _ = self._passes.forward(to_device(x[start : start + _PREDICTED_ROWS], self.device))
                    predicted.append(logits_BK[:, :known].argmax(dim=1))
        finally:
            self.network.train()
        return torch.cat(predicted).cpu().numpy() if predicted else np.empty(0, np.int64)

    # -- the update ------------------------------------------------------------------------------------------------

    def update(
        self,
        x: npt.NDArray[np.generic],
        labels: Sequence[str],
        *,
        subjects: npt.NDArray[np.int64] | None = None,
        drift: bool = False,
    ) -> UpdateReport:
        """Learn from B >= 1 rows x (B, ...) in the dtype of the input spec.

        `subjects` (B,) says whom each row is about, for the reservoir (None: not known). `drift`: the stream is known
        to have moved.

        1. New labels get logit columns; where none are left, the head's capacity doubles, and optimizer, terms and
           stored logits follow. The terms hear what changed.
        2. All draws of all terms, keyed by (seed, term, update number), in one batch with the incoming rows.
        3. Random changes of the batch's images, keyed by the update number.
        4. One forward pass (`passes.py`). The loss is the incoming rows' own (`incoming_loss.py`) plus what each term
           makes of its slice.
        5. One backward pass, and a look at all that would enter the state: where it is not finite, steps 1 to 5 are
           undone.
        6. The terms see the gradients and may change them; the norm is clipped; optimizer and average step.
        7. The reservoir takes the un-augmented rows, their labels, and the logits of this very pass.

        `NotFinite` as if nothing had been asked; UserError past `network.max_classes`, before anything has changed.
        """
        rows = len(x)
        assert rows == len(labels) > 0, f"{rows} rows with {len(labels)} labels"
        started = time.perf_counter()
        undo = self._undo_point(labels, drift)
        try:
            told = self._tell(x, labels, drift)
            passed = self._repeated.run(told.batch)
        except NotFinite:
            undo()
            raise
        backwarded = time.perf_counter()

        # 6.
        for term in self._terms.values():
            term.after_backward(passed.row_gradients if term.needs_row_gradients else None)
        longest = self.settings.optimizer.max_gradient_norm
        if longest is not None and (passed.gradient_norm > longest or self._terms_change_gradients):
            nn.utils.clip_grad_norm_(self._parameters.values(), longest)
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
        for term in self._terms.values():
            term.after_update(rows)
        optimized = time.perf_counter()

        # 7.
        logits_BK = passed.logits_BK
        self._reservoir.insert(passed.x, told.batch.columns_B, logits_BK, self.network.columns, subjects)
        self.updates += 1
        if told.known_before:
            correct_B = logits_BK[:, : told.known_before].argmax(dim=1) == passed.y_B
        else:
            correct_B = torch.zeros(rows, dtype=torch.bool, device=self.device)
        return UpdateReport(
            number=self.updates,
            rows=rows,
            replayed_rows=told.batch.draws * told.batch.draw_size,
            loss=passed.loss,
            correct_B=correct_B,
            known_before=told.known_before,
            new_classes=told.new_classes,
            seconds={
                "draw": told.told - started,
                "forward": passed.forwarded - told.told,
                "backward": backwarded - passed.forwarded,
                "optimizer": optimized - backwarded,
                "insert": time.perf_counter() - optimized,
            },
        )

    def fault(self, x: npt.NDArray[np.generic], labels: Sequence[str], *, drift: bool = False) -> str | None:
        """What would be wrong with the next update if it had these rows ("the loss is not finite"); None: nothing.
        Without a row it is the replay and the penalties that are judged. Changes nothing."""
        undo = self._undo_point(labels, drift)
        try:
            self._repeated.run(self._tell(x, labels, drift).batch)
        except NotFinite as error:
            return str(error)
        finally:
            undo()
        return None

    def _undo_point(self, labels: Sequence[str], drift: bool) -> Callable[[], None]:
        """What brings back how things stand now, after steps 1 to 5 of an update.

        Passes move the statistics of batch norms, and nothing else. Classes, terms and all that grows are kept only
        where step 1 will find something to do. Then the old head, optimizer and reservoir rows are kept themselves: a
        growth makes new ones, and nobody writes into the old.
        """
        moved = self._passes.moved_by_a_pass
        before = _copies(moved)

        def undo_passes() -> None:
            for buffer, value in zip(moved, before, strict=True):
                buffer.copy_(value)

        if not drift and all(label in self._classes for label in labels):
            return undo_passes
        classes = self._classes.state()
        terms = {name: _moved(term.state(), self.device, copy=True) for name, term in self._terms.items()}
        head, columns, optimizer = self.network.head, self.network.columns, self._optimizer
        of_head = {name: self._parameters[name] for name in ("head.weight", "head.bias")}
        rows = self._reservoir.state()
        average = None if self._average is None else self._average.kept()

        def undo_changes() -> None:
            undo_passes()
            self._classes.load_state(classes)
            if self.network.columns != columns:
                head.weight, head.bias, head.out_features = *of_head.values(), columns
                self._parameters.update(of_head)  # in place, as in `_grow`
                self._optimizer = optimizer
                self._reservoir.load_state(rows)
                self._reservoir.grow(columns)
                self._repeated.forget()
                if self._average is not None and average is not None:
                    self._average.put_back(average)
            for name, term in self._terms.items():
                term.load_state(terms[name])

        return undo_changes

    def _tell(self, x: npt.NDArray[np.generic], labels: Sequence[str], drift: bool) -> _Told:
        """Steps 1 to 3 of an update, with no row too. What they change there is an undo point for."""
        rows, number = len(x), self.updates + 1
        assert x.shape[1:] == self.spec.shape, f"{x.shape} is not {self.spec}"
        assert x.dtype == np.dtype(self.spec.dtype), f"{x.dtype} is not {self.spec}"

        # 1.
        known_before = len(self._classes)
        new_classes = self._classes.add_new(labels)
        if len(self._classes) > self.network.columns:
            self._grow(len(self._classes))
        for change in ([Change.NEW_CLASS] if new_classes else []) + ([Change.DRIFT] if drift else []):
            for term in self._terms.values():
                term.on_change(change)

        # 2.
        draws = self._draw(number)
        slots_R = np.concatenate(draws) if draws else None

        # 3.
        changes = self._augmentation.draw(rows + (0 if slots_R is None else len(slots_R)), number)
        batch = Batch(
            x=x,
            columns_B=self._classes.columns(labels),
            known=len(self._classes),
            slots_R=slots_R,
            draws=len(draws),
            once=None if slots_R is None else self._passes.once(slots_R, len(draws), rows),
            changes=changes,
        )
        return _Told(batch=batch, known_before=known_before, new_classes=new_classes, told=time.perf_counter())

    def _draw(self, number: int) -> list[npt.NDArray[np.int64]]:
        """Slots of the reservoir: all draws of all terms, in the terms' order; every draw has the same number."""
        if not self._reservoir.filled:
            return []
        size = self.settings.replay.draw_size
        return [
            self._reservoir.draw(size, self._generator(f"replay/{name}/{i}", number))
            for name, term in self._terms.items()
            for i in range(term.draws)
        ]

    def _served_weights(self) -> AbstractContextManager[object]:
        return nullcontext() if self._average is None else self._average.in_place_of_the_weights()

    def _grow(self, needed: int) -> None:
        """Double the head's columns until `needed` fit; all that has their shape follows."""
        columns = self.network.columns
        while columns < needed:
            columns *= 2
        self.network.grow(columns)
        head = {f"head.{name}": parameter for name, parameter in self.network.head.named_parameters()}
        shapes = {name: tuple(parameter.shape) for name, parameter in head.items()}
        momenta = grown(self._optimizer.momenta, shapes)
        self._parameters.update(head)  # in place: the terms hold on to this mapping
        self._optimizer = Sgd(self.settings.optimizer, self._parameters, momenta)
        for term in self._terms.values():
            term.grow(shapes)
        self._reservoir.grow(columns)
        self._repeated.forget()
        if self._average is not None:
            self._average.grow()

    def _attach(self, network: Network, momenta: Mapping[str, Tensor]) -> None:
        """Everything that holds on to parameters, made anew for this network."""
        self.network = network
        network.place_on(self.device)
        network.train()
        self._parameters = dict(network.named_parameters())
        self._optimizer = Sgd(self.settings.optimizer, self._parameters, momenta)
        rate = self.settings.averaging.rate
        self._average = None if rate is None else WeightAverage(self.network, rate)
        known = retention.retention_terms()
        # sorted: the order of the losses' sum must not hang on the order in a settings file
        self._terms: dict[str, RetentionTerm] = {
            name: known[name](config, self._parameters) for name, config in sorted(self.settings.retention.items())
        }
        self._reservoir.grow(network.columns)
        self._passes = Passes(
            self.settings,
            network,
            self._parameters,
            self._terms,
            self._reservoir,
            self._augmentation,
            self.device,
        )
        self._repeated = RepeatedPasses(self._passes)
        self._terms_change_gradients = any(term.changes_gradients for term in self._terms.values())

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> StateTree:
        """All that is needed to go on bit for bit: a copy on the CPU, which later updates leave alone."""
        state: StateTree = {
            "updates": self.updates,
            "architecture": cast(Json, self.architecture),
            "classes": self._classes.state(),
            "network": dict(self.network.state_dict()),
            "momenta": cast(StateTree, self._optimizer.momenta),
            "average": {} if self._average is None else self._average.state(),
            "reservoir": self._reservoir.state(),
            "retention": cast(StateTree, {name: term.state() for name, term in self._terms.items()}),
        }
        return _moved(state, torch.device("cpu"), copy=True)

    def load_state(self, state: StateTree) -> None:
        """Inverse of `state`, for a learner of the same settings and input.

        The network is rebuilt as the state describes it, since a restructuring may have changed it. Momenta that are
        missing start at zero.
        """
        architecture = cast("dict[str, object]", state["architecture"])
        weights = cast("dict[str, Tensor]", state["network"])
        network = network_from_architecture(architecture, self.settings.seed, weights=weights)
        if network.spec != self.spec:
            raise UserError(
                f"the state was learnt from {network.spec.kind} of shape {network.spec.shape}, this stream holds "
                f"{self.spec.kind} of shape {self.spec.shape}: use another state folder"
            )
        state = _moved(state, self.device, copy=True)
        network.load_state_dict(cast("dict[str, Tensor]", state["network"]))
        self.updates = cast(int, state["updates"])
        self._classes.load_state(cast(StateTree, state["classes"]))
        self._reservoir.load_state(cast(StateTree, state["reservoir"]))
        self._attach(network, cast("dict[str, Tensor]", state["momenta"]))
        average = cast(StateTree, state.get("average", {}))
        if bool(average) != (self._average is not None):
            raise UserError(
                f"the state was learnt {'with' if average else 'without'} averaged weights: set averaging.rate "
                f"{'as it was then' if average else 'to null'}"
            )
        if self._average is not None:
            self._average.load_state(average)
        stored = cast("dict[str, StateTree]", state["retention"])
        if set(stored) != set(self._terms):
            raise UserError(
                f"the state was learnt with retention terms {sorted(stored)}, the settings name {sorted(self._terms)}: "
                "use the same ones"
            )
        for name, term in self._terms.items():
            term.load_state(stored[name])


def _network_settings(settings: LearnerSettings, spec: InputSpec) -> NetworkSettings:
    """A text encoder must take the ids that the tokenizer gives: the input's settings go into its options."""
    network = settings.network
    if choose_backbone(network.backbone, spec) != "text_encoder":
        return network
    from pipeline.backbones.text_encoder import has_encoder

    options = dict(network.options)
    folder = settings.input.checkpoint
    if folder is None:
        options.setdefault("vocabulary", settings.input.vocabulary_size)
    elif has_encoder(folder):
        options.setdefault("checkpoint", folder)
    return network.model_copy(update={"options": options})


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """In a kernel or two, where there are many small ones."""
    copies = [torch.empty_like(tensor) for tensor in tensors]
    if tensors:
        torch._foreach_copy_(copies, list(tensors))
    return copies


def _moved(tree: StateTree, device: torch.device, *, copy: bool) -> StateTree:
    """The tree with its tensors on the device."""
    moved: StateTree = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):
            moved[key] = value.detach().to(device, copy=copy).contiguous()
        elif isinstance(value, dict):
            moved[key] = _moved(cast(StateTree, value), device, copy=copy)
        else:
            moved[key] = deepcopy(value) if copy else value
    return moved
