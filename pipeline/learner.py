"""One update: ONE forward, ONE backward, however many retention terms.

Legend: B = incoming rows, R = rows of one draw, K = logit columns, D = width of the features
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline import finiteness, keyed_randomness, retention
from pipeline.augmentation import Augmentation
from pipeline.class_index import ClassIndex
from pipeline.device import choose_device, to_device
from pipeline.finiteness import NotFinite
from pipeline.incoming_loss import incoming_loss
from pipeline.network import Network, build_network, choose_backbone, network_from_architecture
from pipeline.optimizer import momenta_of, sgd
from pipeline.quadratic_anchor import grown
from pipeline.reservoir import Reservoir, ReservoirRows
from pipeline.retention.term import Change, ReplayRows, RetentionTerm, RowGradients, Rows
from pipeline.sample import InputSpec
from pipeline.settings import LearnerSettings, NetworkSettings
from pipeline.state import Json, StateTree
from pipeline.user_error import UserError
from pipeline.weight_average import WeightAverage

if TYPE_CHECKING:
    from pipeline.row_gradients import RowGradientCapture

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
class _Passed:
    """What the passes of an update hand on to what changes the state."""

    x: Tensor  # (B, ...) on the device, un-augmented
    y_B: Tensor
    columns_B: npt.NDArray[np.int64]  # y_B on the CPU
    logits_BK: Tensor  # of the incoming rows, detached
    loss: Mapping[str, Tensor]
    row_gradients: RowGradients | None
    gradient_norm: float  # of all parameters together
    replayed_rows: int
    known_before: int
    new_classes: tuple[str, ...]
    drawn: float  # when the rows were there, by `time.perf_counter`
    forwarded: float  # when the loss was


class Learner:
    """Network, optimizer, reservoir, retention terms and class index, and the one update that moves them together."""

    def __init__(self, settings: LearnerSettings, spec: InputSpec) -> None:
        self.settings = settings
        self.spec = spec
        self.device = choose_device(settings.device)
        self.updates = 0  # done so far
        self._classes = ClassIndex(settings.network.max_classes)
        self._incoming_loss = settings.chosen_incoming_loss
        self._augmentation = Augmentation(settings.augmentation, spec, settings.seed)
        replay = settings.replay
        self._reservoir = Reservoir(replay.capacity, spec, settings.seed, self.device, replay.sampling)
        self._optimizer: torch.optim.SGD
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
        return sum(parameter.numel() for parameter in self._parameters.values())

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
                    logits_BK, _ = self._forward(to_device(x[start : start + _PREDICTED_ROWS], self.device))
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
        4. One forward pass (`replay.fused: false`: one for the incoming rows and one a draw). The loss is the incoming
           rows' own (`incoming_loss.py`) plus what each term makes of its slice.
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
            passed = self._forward_and_backward(x, labels, drift)
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
        self._reservoir.insert(passed.x, passed.columns_B, logits_BK, self.network.columns, subjects)
        self.updates += 1
        if passed.known_before:
            correct_B = logits_BK[:, : passed.known_before].argmax(dim=1) == passed.y_B
        else:
            correct_B = torch.zeros(rows, dtype=torch.bool, device=self.device)
        return UpdateReport(
            number=self.updates,
            rows=rows,
            replayed_rows=passed.replayed_rows,
            loss=passed.loss,
            correct_B=correct_B,
            known_before=passed.known_before,
            new_classes=passed.new_classes,
            seconds={
                "draw": passed.drawn - started,
                "forward": passed.forwarded - passed.drawn,
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
            self._forward_and_backward(x, labels, drift)
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
        statistics = [(buffer, buffer.clone()) for buffer in self._buffers]

        def undo_passes() -> None:
            for buffer, before in statistics:
                buffer.copy_(before)

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
                if self._average is not None and average is not None:
                    self._average.put_back(average)
            for name, term in self._terms.items():
                term.load_state(terms[name])

        return undo_changes

    def _forward_and_backward(self, x: npt.NDArray[np.generic], labels: Sequence[str], drift: bool) -> _Passed:
        """Steps 1 to 5 of an update, with no row too. `NotFinite` leaves them half done: there is an undo point."""
        rows, number, terms = len(x), self.updates + 1, self._terms
        assert x.shape[1:] == self.spec.shape, f"{x.shape} is not {self.spec}"
        assert x.dtype == np.dtype(self.spec.dtype), f"{x.dtype} is not {self.spec}"

        # 1.
        known_before = len(self._classes)
        new_classes = self._classes.add_new(labels)
        if len(self._classes) > self.network.columns:
            self._grow(len(self._classes))
        for change in ([Change.NEW_CLASS] if new_classes else []) + ([Change.DRIFT] if drift else []):
            for term in terms.values():
                term.on_change(change)

        # 2.
        x_incoming = to_device(x, self.device)
        columns_B = self._classes.columns(labels)
        y_B = to_device(columns_B, self.device)
        replayed, draws = self._draw(number)
        drawn_rows = len(replayed.y_B) // draws if replayed else 0
        x_all = torch.cat([x_incoming, replayed.x]) if replayed else x_incoming

        # 3.
        x_all = self._augmentation(x_all, number, incoming=rows)
        drawn = time.perf_counter()

        # 4.
        logits_BK, features_BD = self._forward_slices(x_all, [rows] + [drawn_rows] * draws)
        incoming = Rows(y_B=y_B, logits_BK=logits_BK[0], features_BD=features_BD[0])
        replays = self._replay_rows(replayed, logits_BK[1:], features_BD[1:], drawn_rows)
        if rows:
            total = incoming_loss(incoming.logits_BK, y_B, len(self._classes), self._incoming_loss)
        else:
            total = incoming.logits_BK.sum()
        loss = {"incoming": total.detach()}
        first = 0
        for name, term in terms.items():
            mine = replays[first : first + term.draws]
            first += term.draws
            for part, value in term.loss(incoming, mine).items():
                total = total + value
                loss[f"{name}.{part}"] = value.detach()
        logits = incoming.logits_BK.detach()
        # on the CPU a look costs nothing yet, and may spare the backward pass
        found = finiteness.check_loss(total, logits, at_once=self.device.type == "cpu")
        forwarded = time.perf_counter()

        # 5.
        self._optimizer.zero_grad()
        row_gradients, norm = None, 0.0
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
            row_gradients = self._capture.finish() if self._capture and rows else None
            taken = {
                name: term.takes(row_gradients)
                for name, term in terms.items()
                if row_gradients is not None and term.needs_row_gradients
            }
            norm = finiteness.check_update(found, self._parameters, taken, self._statistics, self.settings.optimizer)
        return _Passed(
            x=x_incoming,
            y_B=y_B,
            columns_B=columns_B,
            logits_BK=logits,
            loss=loss,
            row_gradients=row_gradients,
            gradient_norm=norm,
            replayed_rows=drawn_rows * draws,
            known_before=known_before,
            new_classes=new_classes,
            drawn=drawn,
            forwarded=forwarded,
        )

    def _draw(self, number: int) -> tuple[ReservoirRows | None, int]:
        """All draws of all terms as one block of rows, in the terms' order; every draw has the same number of rows."""
        if not self._reservoir.filled:
            return None, 0
        size = self.settings.replay.draw_size
        indices = [
            self._reservoir.draw(size, keyed_randomness.generator(self.settings.seed, f"replay/{name}/{i}", number))
            for name, term in self._terms.items()
            for i in range(term.draws)
        ]
        if not indices:
            return None, 0
        return self._reservoir.rows(to_device(np.concatenate(indices), self.device)), len(indices)

    def _forward_slices(self, x_all: Tensor, sizes: list[int]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Logits and features of each slice of the batch, from one forward pass or from one each."""
        if self._capture and sizes[0]:
            self._capture.start(rows=sizes[0], scale=float(sizes[0]))
        if self.settings.replay.fused or len(sizes) == 1:
            logits_BK, features_BD = self._forward(x_all)
            return torch.split_with_sizes(logits_BK, sizes), torch.split_with_sizes(features_BD, sizes)
        parts = torch.split_with_sizes(x_all, sizes)
        outputs = [self._forward(part) for part in parts]
        return [logits for logits, _ in outputs], [features for _, features in outputs]

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not len(x):  # not every layer takes it
            return x.new_zeros((0, self.network.columns), dtype=torch.float32), x.new_zeros(
                (0, self.network.body.width), dtype=torch.float32
            )
        with self._precision():
            logits_BK, features_BD = self.network(x)
        return logits_BK.float(), features_BD.float()

    def _served_weights(self) -> AbstractContextManager[object]:
        return nullcontext() if self._average is None else self._average.in_place_of_the_weights()

    def _precision(self) -> AbstractContextManager[object]:
        wanted = self.settings.precision
        if wanted == "bfloat16" or (
            wanted == "auto" and self.device.type == "cuda" and self.network.body.prefers_bfloat16
        ):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _replay_rows(
        self, replayed: ReservoirRows | None, logits_RK: Sequence[Tensor], features_RD: Sequence[Tensor], size: int
    ) -> tuple[ReplayRows, ...]:
        """One `ReplayRows` a draw, from the block of rows and what the forward pass made of each slice."""
        if replayed is None:
            return ()
        sizes = [size] * len(logits_RK)
        return tuple(
            ReplayRows(
                y_B=y_R, logits_BK=logits, features_BD=features, stored_logits_BK=stored, stored_columns_B=columns_R
            )
            for y_R, logits, features, stored, columns_R in zip(
                torch.split_with_sizes(replayed.y_B, sizes),
                logits_RK,
                features_RD,
                torch.split_with_sizes(replayed.logits_BK, sizes),
                torch.split_with_sizes(replayed.columns_B, sizes),
                strict=True,
            )
        )

    def _grow(self, needed: int) -> None:
        """Double the head's columns until `needed` fit; all that has their shape follows."""
        columns = self.network.columns
        while columns < needed:
            columns *= 2
        self.network.grow(columns)
        head = {f"head.{name}": parameter for name, parameter in self.network.head.named_parameters()}
        shapes = {name: tuple(parameter.shape) for name, parameter in head.items()}
        momenta = grown(momenta_of(self._optimizer, self._parameters), shapes)
        self._parameters.update(head)  # in place: the terms hold on to this mapping
        self._optimizer = sgd(self.settings.optimizer, self._parameters, momenta)
        for term in self._terms.values():
            term.grow(shapes)
        self._reservoir.grow(columns)
        if self._average is not None:
            self._average.grow()

    def _attach(self, network: Network, momenta: Mapping[str, Tensor]) -> None:
        """Everything that holds on to parameters, made anew for this network."""
        self.network = network.to(self.device).train()
        self._parameters = dict(network.named_parameters())
        self._buffers = list(network.buffers())  # all of batch norms, as far as a pass moves any
        self._statistics = [buffer for buffer in self._buffers if buffer.is_floating_point()]
        self._optimizer = sgd(self.settings.optimizer, self._parameters, momenta)
        rate = self.settings.averaging.rate
        self._average = None if rate is None else WeightAverage(self.network, rate)
        known = retention.retention_terms()
        # sorted: the order of the losses' sum must not hang on the order in a settings file
        self._terms: dict[str, RetentionTerm] = {
            name: known[name](config, self._parameters) for name, config in sorted(self.settings.retention.items())
        }
        self._reservoir.grow(network.columns)
        self._capture: RowGradientCapture | None = None
        if any(term.needs_row_gradients for term in self._terms.values()):
            from pipeline.row_gradients import RowGradientCapture

            self._capture = RowGradientCapture(self.network)
        self._terms_change_gradients = any(term.changes_gradients for term in self._terms.values())

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> StateTree:
        """All that is needed to go on bit for bit: a copy on the CPU, which later updates leave alone."""
        state: StateTree = {
            "updates": self.updates,
            "architecture": cast(Json, self.architecture),
            "classes": self._classes.state(),
            "network": dict(self.network.state_dict()),
            "momenta": cast(StateTree, momenta_of(self._optimizer, self._parameters)),
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
