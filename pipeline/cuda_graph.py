"""The passes of an update as one CUDA graph: a small network's update is some two hundred kernels, and launching them
one by one from Python takes many times as long as they run.

A graph is recorded once and then repeated as a whole, on tensors that stay in their places: a batch is copied into
them, the reservoir and the weights change in place. So it is recorded anew where anything moves: another number of
rows, a head or a reservoir that grew, an anchor where there was none (`Passes.work`), another state. The kernels are
those that the passes launch by themselves, so weights come out the same, bit for bit.

NVIDIA, "Getting started with CUDA graphs", 2019; torch.cuda.graph.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import finiteness
from pipeline.passes import Batch, Passed, Passes, PlacedBatch

_LOG = logging.getLogger(__name__)

# Equal updates before one is recorded: recording costs as much as some hundred, and while classes come and the
# reservoir fills, no two are alike.
_EQUAL_BEFORE = 5

# Kinds of work that are remembered: a term may want something else of every n-th update.
_KINDS = 4


class RepeatedPasses:
    """Runs passes, from the graph where there is one."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._met: OrderedDict[Hashable, int] = OrderedDict()  # work -> how often; the latest last
        self._recorded: dict[Hashable, _Recorded] = {}
        self._recordable = passes.device.type == "cuda"

    @property
    def is_recorded(self) -> bool:
        return bool(self._recorded)

    def stop_recording(self) -> None:
        """Launch kernels one by one from now on."""
        self.forget()
        self._recordable = False

    def forget(self) -> None:
        """Tensors that the passes read have been replaced."""
        self._met.clear()
        self._recorded.clear()

    def run(self, batch: Batch) -> Passed:
        """`NotFinite` where something must not enter the state."""
        if not self._recordable:
            return self._passes.run(batch)
        work = self._passes.work(batch)
        if work is None or self._meet(work) <= _EQUAL_BEFORE:
            return self._passes.run(batch)
        if work not in self._recorded:
            try:
                self._recorded[work] = _Recorded(self._passes, batch)
            except (
                RuntimeError
            ) as error:  # a layer waits for the device: it cannot be recorded, but learnt from as ever
                self._recordable = False
                torch.cuda.synchronize(self._passes.device)
                _LOG.warning(
                    "updates cannot be recorded as a CUDA graph (%s): each launches its kernels one by one, which is "
                    "slower for small networks",
                    str(error).partition("\n")[0],
                )
                return self._passes.run(batch)
        return self._recorded[work].run(batch)

    def _meet(self, work: Hashable) -> int:
        """How often it was met, this time included. What was not met for long is forgotten."""
        self._met[work] = self._met.get(work, 0) + 1
        self._met.move_to_end(work)
        while len(self._met) > _KINDS:
            oldest, _ = self._met.popitem(last=False)
            self._recorded.pop(oldest, None)
        return self._met[work]


class _Recorded:
    """One graph, the tensors that it reads and those that it writes."""

    def __init__(self, passes: Passes, batch: Batch) -> None:
        """Record what this batch needs; computes nothing that lasts.

            1. Places for the batch, on the device, each beside one in page-locked memory.
            2. The passes once, unrecorded, on the stream that will record: libraries set themselves up there.
               What they moved (batch norms' statistics) is put back.
        3. The passes again, recorded.
        """
        self._passes = passes
        # 1.
        self._x = _Place(batch.x, passes.device)
        self._integers = _Place(_integers(batch), passes.device)
        theta = batch.changes.theta_B23 if batch.changes else None
        self._theta = None if theta is None else _Place(theta, passes.device)
        placed = self._placed(batch)
        self._x_in_place, self._y_B = placed.x, placed.y_B
        # 2.
        self._load(batch)
        moved = [(buffer, buffer.clone()) for buffer in passes.moved_by_a_pass]
        torch.cuda.synchronize(passes.device)
        stream = torch.cuda.Stream(passes.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            try:
                passes.compute(placed, batch.draws, look_at_once=False)
            finally:  # also where the memory does not suffice, and the passes are launched one by one after all
                for buffer, before in moved:
                    buffer.copy_(before)
        # 3.
        torch.cuda.synchronize(passes.device)
        self._graph = torch.cuda.CUDAGraph()
        # other threads of the process may use the device meanwhile
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._computed = passes.compute(placed, batch.draws, look_at_once=False)
            self._looked_at = torch.stack(finiteness.flat(self._computed.found))
            self._losses = torch.stack(list(self._computed.loss.values()))
        self._gradients = [(parameter, parameter.grad) for parameter in passes.parameters.values()]

    def run(self, batch: Batch) -> Passed:
        self._load(batch)
        self._graph.replay()
        forwarded = time.perf_counter()
        losses = self._losses.clone()  # a report may be read after the next update
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        values = finiteness.numbered(self._computed.found, self._looked_at.tolist())  # waits
        finiteness.check(values)
        return Passed(
            x=self._x_in_place,
            y_B=self._y_B,
            logits_BK=self._computed.logits_BK,
            loss=dict(zip(self._computed.loss, losses.unbind(), strict=True)),
            row_gradients=self._computed.row_gradients,
            gradient_norm=finiteness.gradient_norm(values, self._passes.settings.optimizer),
            forwarded=forwarded,
        )

    def _load(self, batch: Batch) -> None:
        """The last repetition was waited for, so the page-locked memory is free to be written."""
        self._x.load(batch.x)
        self._integers.load(_integers(batch))
        if self._theta is not None:
            assert batch.changes is not None, "the work is equal"
            assert batch.changes.theta_B23 is not None, "the work is equal"
            self._theta.load(batch.changes.theta_B23)

    def _placed(self, batch: Batch) -> PlacedBatch:
        """Views of the places, as `_integers` fills them."""
        rows, replayed = len(batch.x), batch.draws * batch.draw_size
        known, y_B, slots_R, indices = self._integers.on_device.split_with_sizes(
            [1, rows, replayed, len(self._integers.on_device) - 1 - rows - replayed]
        )
        changed = batch.changes is not None and batch.changes.indices is not None
        return PlacedBatch(
            x=self._x.on_device,
            y_B=y_B,
            known=known[0],
            slots_R=slots_R if batch.slots_R is not None else None,
            slots_U=None,
            places=None,
            indices=indices.view(rows + replayed, -1) if changed else None,
            theta_B23=None if self._theta is None else self._theta.on_device,
        )


class _Place:
    """Of one array: a tensor on the device, which never moves."""

    def __init__(self, like: npt.NDArray[np.generic], device: torch.device) -> None:
        self._locked = torch.from_numpy(np.array(like)).pin_memory()
        self._array = self._locked.numpy()
        self.on_device: Tensor = self._locked.to(device)

    def load(self, array: npt.NDArray[np.generic]) -> None:
        np.copyto(self._array, array)
        self.on_device.copy_(self._locked, non_blocking=True)


def _integers(batch: Batch) -> npt.NDArray[np.int64]:
    """All of a batch's integers in one array, so that one copy brings them."""
    parts = [np.array([batch.known]), batch.columns_B]
    if batch.slots_R is not None:
        parts.append(batch.slots_R)
    if batch.changes is not None and batch.changes.indices is not None:
        parts.append(batch.changes.indices.reshape(-1))
    return np.concatenate(parts)
