"""The passes of one update: from a batch to gradients, and a look at all that would enter the state.

Legend: B = incoming rows, R = rows of all draws, U = different ones of them, K = logit columns, D = width of features
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline import finiteness
from pipeline.augmentation import Augmentation, Draws
from pipeline.device import to_device
from pipeline.finiteness import Found
from pipeline.incoming_loss import incoming_loss
from pipeline.network import Network
from pipeline.precision import layers_in
from pipeline.reservoir import Reservoir, ReservoirRows
from pipeline.retention.term import ReplayRows, RetentionTerm, RowGradients, Rows
from pipeline.settings import LearnerSettings

if TYPE_CHECKING:
    from pipeline.row_gradients import RowGradientCapture


# Rows pass once where so few are left; the places of more would cost as much as they save.
_FEW_ENOUGH = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """Rows that several draws share, each of which passes once."""

    slots_U: npt.NDArray[np.int64]  # of the reservoir, each once
    places: npt.NDArray[np.int64]  # (B + R): of each row, the incoming ones first, among those that pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What an update's passes are told, on the CPU."""

    x: npt.NDArray[np.generic]  # (B, ...) in the dtype of the input spec
    columns_B: npt.NDArray[np.int64]  # the rows' logit columns
    known: int  # classes that have a column, the batch's own included
    slots_R: npt.NDArray[np.int64] | None  # of the reservoir: draw after draw, all of one size; None: no replay
    draws: int
    once: Once | None  # None: every drawn row has a row of the forward pass
    changes: Draws | None  # of the images, the incoming rows first

    @property
    def draw_size(self) -> int:
        return 0 if self.slots_R is None else len(self.slots_R) // self.draws


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedBatch:
    """A batch's arrays on the device."""

    x: Tensor
    y_B: Tensor
    known: int | Tensor
    slots_R: Tensor | None
    slots_U: Tensor | None  # of `Once`
    places: Tensor | None
    indices: Tensor | None  # of `Draws`
    theta_B23: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What the device was asked for; nothing of it was waited for. The gradients lie in the parameters."""

    logits_BK: Tensor  # of the incoming rows, detached
    loss: Mapping[str, Tensor]  # scalars, detached: "incoming", and "TERM.NAME" of each retention term
    row_gradients: RowGradients | None
    found: Found  # to be looked at
    forwarded: float  # when the loss was there, or queued, by `time.perf_counter`


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """Passes of which all was looked at."""

    x: Tensor  # (B, ...) on the device, un-augmented
    y_B: Tensor
    logits_BK: Tensor
    loss: Mapping[str, Tensor]
    row_gradients: RowGradients | None
    gradient_norm: float  # of all parameters together
    forwarded: float


class Passes:
    """Of one network with its retention terms. Draws nothing and decides nothing: that is in the batch."""

    def __init__(
        self,
        settings: LearnerSettings,
        network: Network,
        parameters: Mapping[str, nn.Parameter],
        terms: Mapping[str, RetentionTerm],
        reservoir: Reservoir,
        augmentation: Augmentation,
        device: torch.device,
    ) -> None:
        """`parameters` is live: a head that grows has new ones."""
        self.parameters = parameters
        self.device = device
        self.settings = settings
        self._network = network
        self._terms = terms
        self._reservoir = reservoir
        self._augmentation = augmentation
        self._incoming_loss = settings.chosen_incoming_loss
        self.moved_by_a_pass = list(network.buffers())  # all of batch norms, as far as a pass moves any
        # On CUDA sizes that change from one update to the next would cost more than the rows (`cuda_graph.py`). A batch
        # norm's statistics would be others, and images are changed anew for each draw.
        self._rows_pass_once = (
            device.type == "cpu" and settings.replay.fused and not self.moved_by_a_pass and not augmentation.is_on
        )
        self._statistics = [buffer for buffer in self.moved_by_a_pass if buffer.is_floating_point()]
        self._capture: RowGradientCapture | None = None  # made when first needed

    def once(self, slots_R: npt.NDArray[np.int64], draws: int, rows: int) -> Once | None:
        """Of two draws of 128 from 200, 82 rows are in both: their logits are the same, their gradients add up."""
        if not self._rows_pass_once or draws < 2:
            return None
        slots_U, places_R = np.unique(slots_R, return_inverse=True)
        if len(slots_U) > _FEW_ENOUGH * len(slots_R):
            return None
        return Once(slots_U=slots_U, places=np.concatenate([np.arange(rows), rows + places_R]))

    def run(self, batch: Batch) -> Passed:
        """`NotFinite` where something must not enter the state."""
        placed = self._placed(batch)
        # on the CPU a look costs nothing yet, and may spare the backward pass
        computed = self.compute(placed, batch.draws, look_at_once=self.device.type == "cpu")
        values = finiteness.read(computed.found)
        finiteness.check(values)
        return Passed(
            x=placed.x,
            y_B=placed.y_B,
            logits_BK=computed.logits_BK,
            loss=computed.loss,
            row_gradients=computed.row_gradients,
            gradient_norm=finiteness.gradient_norm(values, self.settings.optimizer),
            forwarded=computed.forwarded,
        )

    def work(self, batch: Batch) -> Hashable | None:
        """Equal for batches that give the device the same work on tensors of the same sizes in the same places; None
        where a term cannot promise that. Not for two heads or two reservoirs: see `cuda_graph.py`."""
        of_terms = tuple(term.work for term in self._terms.values())
        if None in of_terms:
            return None
        changes = batch.changes
        return (
            batch.x.shape,
            batch.draws,
            batch.draw_size,
            self._reservoir.has_narrow_rows,
            changes is not None and changes.indices is not None,
            changes is not None and changes.theta_B23 is not None,
            of_terms,
        )

    def _placed(self, batch: Batch) -> PlacedBatch:
        def place(array: npt.NDArray[np.generic] | None) -> Tensor | None:
            return None if array is None else to_device(array, self.device)

        return PlacedBatch(
            x=to_device(batch.x, self.device),
            y_B=to_device(batch.columns_B, self.device),
            known=batch.known,
            slots_R=place(batch.slots_R),
            slots_U=place(batch.once.slots_U) if batch.once else None,
            places=place(batch.once.places) if batch.once else None,
            indices=place(batch.changes.indices) if batch.changes else None,
            theta_B23=place(batch.changes.theta_B23) if batch.changes else None,
        )

    def compute(self, batch: PlacedBatch, draws: int, *, look_at_once: bool) -> Computed:
        """All that the device has to do, queued.

        1. The drawn rows, in one batch with the incoming ones; its images are changed.
        2. One forward pass (`replay.fused: false`: one for the incoming rows and one a draw).
        3. The loss: the incoming rows' own, and what each term makes of its slice.
        4. One backward pass, and what the terms take of the incoming rows' gradients.

        `look_at_once`: `NotFinite` before the backward pass where the loss is not.
        """
        # 1.
        rows = len(batch.y_B)
        capture = self._capture_of(rows)
        replayed = None if batch.slots_R is None else self._reservoir.rows(batch.slots_R, x_of=batch.slots_U)
        drawn = len(replayed.y_B) // draws if replayed else 0
        x_all = torch.cat([batch.x, replayed.x]) if replayed else batch.x
        x_all = self._augmentation.apply(x_all, batch.indices, batch.theta_B23, incoming=rows)
        # 2.
        logits_BK, features_BD = self._forward_slices(x_all, [rows] + [drawn] * draws, batch.places)
        incoming = Rows(y_B=batch.y_B, logits_BK=logits_BK[0], features_BD=features_BD[0])
        replays = _replay_rows(replayed, logits_BK[1:], features_BD[1:], drawn)
        # 3.
        if rows:
            total = incoming_loss(incoming.logits_BK, batch.y_B, batch.known, self._incoming_loss)
        else:
            total = incoming.logits_BK.sum()
        loss = {"incoming": total.detach()}
        first = 0
        for name, term in self._terms.items():
            mine = replays[first : first + term.draws]
            first += term.draws
            for part, value in term.loss(incoming, mine).items():
                total = total + value
                loss[f"{name}.{part}"] = value.detach()
        logits = incoming.logits_BK.detach()
        found = finiteness.of_the_loss(total, logits)
        if look_at_once:
            finiteness.check(finiteness.read(found))
            found = {}
        forwarded = time.perf_counter()
        # 4.
        for parameter in self.parameters.values():
            parameter.grad = None
        row_gradients = None
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
            row_gradients = capture.finish() if capture else None
            taken = {
                name: term.takes(row_gradients)
                for name, term in self._terms.items()
                if row_gradients is not None and term.needs_row_gradients
            }
            found |= finiteness.of_the_step(self.parameters.values(), taken, self._statistics, self.settings.optimizer)
        return Computed(logits_BK=logits, loss=loss, row_gradients=row_gradients, found=found, forwarded=forwarded)

    def _capture_of(self, rows: int) -> RowGradientCapture | None:
        """Begun, where there are incoming rows and a term needs their gradients."""
        if not rows or not any(term.needs_row_gradients for term in self._terms.values()):
            return None
        if self._capture is None:
            from pipeline.row_gradients import RowGradientCapture

            self._capture = RowGradientCapture(self._network)
        self._capture.start(rows=rows, scale=float(rows))
        return self._capture

    def _forward_slices(
        self, x_all: Tensor, sizes: list[int], places: Tensor | None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Logits and features of each slice of the batch, from one forward pass or from one each."""
        if self.settings.replay.fused or len(sizes) == 1:
            logits_BK, features_BD = self.forward(x_all)
            if places is not None:
                logits_BK, features_BD = logits_BK.index_select(0, places), features_BD.index_select(0, places)
            return torch.split_with_sizes(logits_BK, sizes), torch.split_with_sizes(features_BD, sizes)
        passed = [self.forward(part) for part in torch.split_with_sizes(x_all, sizes)]
        return [logits for logits, _ in passed], [features for _, features in passed]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows on the device -> logits and features, float32 whatever the precision of the layers."""
        if not len(x):  # not every layer takes it
            return x.new_zeros((0, self._network.columns), dtype=torch.float32), x.new_zeros(
                (0, self._network.body.width), dtype=torch.float32
            )
        with layers_in(self.settings.precision, self.device, self._network.body):
            logits_BK, features_BD = self._network(x)
        return logits_BK.float(), features_BD.float()


def _replay_rows(
    replayed: ReservoirRows | None, logits_RK: Sequence[Tensor], features_RD: Sequence[Tensor], size: int
) -> tuple[ReplayRows, ...]:
    """One `ReplayRows` a draw, from the block of rows and what the forward pass made of each slice."""
    if replayed is None:
        return ()
    sizes = [size] * len(logits_RK)
    return tuple(
        ReplayRows(y_B=y_R, logits_BK=logits, features_BD=features, stored_logits_BK=stored, stored_columns_B=columns_R)
        for y_R, logits, features, stored, columns_R in zip(
            torch.split_with_sizes(replayed.y_B, sizes),
            logits_RK,
            features_RD,
            torch.split_with_sizes(replayed.logits_BK, sizes),
            [None] * len(sizes) if replayed.columns_B is None else torch.split_with_sizes(replayed.columns_B, sizes),
            strict=True,
        )
    )
