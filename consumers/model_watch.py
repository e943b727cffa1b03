"""Follows what the fetcher has put on local disk: loads another version beside the one that answers, and swaps.

The new one is loaded and warmed up by a thread of its own, so that between two batches nothing is left to do but to
take the other one. One that cannot be opened, says nothing sensible of an empty input, or takes another kind of input
than the one that answers, is refused, and the old one goes on. At a start that is the last one that was good here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np
import torch

from consumers.model_slot import ModelSlot, ServingModel
from model_store.registry import Alias
from model_store.served_versions import ServedVersion, ServedVersions
from pipeline.classifier import Classifier, ServableDamaged
from pipeline.sample import InputSpec
from pipeline.user_error import UserError

# A look is one system call.
_LOOK_SECONDS = 0.05
# A refused version is tried again after this: a disk that could not be read may be well again.
_RETRY_SECONDS = 30.0
_WARM_UP_ROWS = (1, 8)


class Fetcher(Protocol):
    """What is needed of `ChildProcess`."""

    def start(self) -> bool: ...

    def nudge(self) -> None: ...


class WatchObserver(Protocol):
    """Hears what becomes of versions, from the watch's thread."""

    def serving(self, model: ServingModel, before: int | None, seconds: float) -> None: ...

    def version_refused(self, version: int, why: str) -> None: ...

    def waits(self, why: str) -> None: ...

    def well(self) -> None: ...  # what it waited for is there


class ModelWatch:
    """`run` it in a thread."""

    def __init__(
        self,
        versions: ServedVersions,
        role: Alias,
        slot: ModelSlot,
        fetcher: Fetcher,
        *,
        device: torch.device,
        observers: Collection[WatchObserver],
    ) -> None:
        self._versions, self._role, self._slot, self._fetcher = versions, role, slot, fetcher
        self._device = device
        self._observers = tuple(observers)
        self._seen: object = ()
        self._served: ServedVersion | None = None
        self._refused: dict[str, float] = {}  # name -> monotonic time from which it is tried again
        self._problem: str | None = None

    def run(self, stop: threading.Event, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Until `stop` is set."""
        while not stop.wait(_LOOK_SECONDS):
            self._fetcher.start()
            self.look(clock())

    def look(self, now: float) -> None:
        """Load what the role names, where that is another version than the one that answers."""
        changed = self._versions.changed(self._role)
        due = any(now >= at for at in self._refused.values())
        if changed == self._seen and not due:
            return
        self._seen = changed
        known = self._versions.role(self._role)
        served = known.served
        if known.problem != self._problem:
            self._problem = known.problem
            for observer in self._observers:
                if known.problem is None:
                    observer.well()
                else:
                    observer.waits(known.problem)
        if served is None or served == self._served:
            self._refused.clear()
            return
        if now < self._refused.get(served.name, now):
            return
        reserve = self._last_good(served) if self._slot.model is None else None
        began = time.monotonic()
        try:
            model = self._loaded(served, beside=self._slot.model or (None if reserve is None else reserve[1]))
        except Exception as error:  # whatever it holds that `Classifier.load` did not think of: this thread must live
            self._refused = {served.name: now + _RETRY_SECONDS}
            self._refuse(served, error)
            if reserve is not None:
                self._put(*reserve, began)
            return
        self._refused.clear()
        self._put(served, model, began)

    def _last_good(self, wanted: ServedVersion) -> tuple[ServedVersion, ServingModel] | None:
        """What answered here before the start, where that was another version: it answers if the other one cannot."""
        good = self._versions.good(self._role)
        if good is None or good == wanted:
            return None
        try:
            return good, self._loaded(good, beside=None)
        except Exception as error:
            self._refuse(good, error)
            return None

    def _put(self, served: ServedVersion, model: ServingModel, began: float) -> None:
        before = self._slot.model
        self._served = served
        self._slot.put(model)
        with contextlib.suppress(OSError):  # a folder that only others may write to
            self._versions.note_good(self._role, served)
        for observer in self._observers:
            observer.serving(model, None if before is None else before.version, time.monotonic() - began)

    def _refuse(self, served: ServedVersion, error: Exception) -> None:
        """A copy that is damaged is fetched anew. Any other one stays: it may be this process that cannot open it."""
        if isinstance(error, ServableDamaged):
            with contextlib.suppress(OSError):
                self._versions.drop(served)
            self._fetcher.nudge()
        why = str(error) if isinstance(error, UserError) else repr(error)
        for observer in self._observers:
            observer.version_refused(served.version, why)

    def _loaded(self, served: ServedVersion, *, beside: ServingModel | None) -> ServingModel:
        """`UserError` where it is not to be served, or takes another input than the one `beside` it."""
        if self._versions.is_damaged(served):
            raise ServableDamaged(f"{self._versions.path(served)} is not what was fetched")
        classifier = Classifier.load(self._versions.path(served), device=self._device)
        if beside is not None:
            _check_takes_the_same(beside.classifier.spec, classifier.spec)
        for rows in _WARM_UP_ROWS:
            x = np.zeros((rows, *classifier.spec.shape), classifier.spec.dtype)
            if not np.isfinite(classifier.predict_probabilities(x)).all():
                raise UserError("its answers are not finite: its weights are broken")
        return ServingModel(version=served.version, run_id=served.run_id, classifier=classifier)


def _check_takes_the_same(serving: InputSpec, other: InputSpec) -> None:
    """`UserError` where requests that the one can read would be unreadable to the other. How a text becomes tokens is
    each version's own affair."""
    if other.kind != serving.kind or (other.kind != "text" and other.shape != serving.shape):
        raise UserError(
            f"it takes {other.kind} of shape {other.shape}, and the version that answers takes {serving.kind} of shape "
            f"{serving.shape}: promote another one, or start predictors anew with another --models to serve this one"
        )
