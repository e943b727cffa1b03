"""Drift: the prequential error has risen by more than chance explains.

ADWIN (Bifet and Gavalda 2007, "Learning from time-changing data with adaptive windowing", SDM) keeps a window of the
error bits and cuts its old part off where two parts of the window differ in their mean, at confidence delta.

Where we differ: ADWIN fires on any change of the mean, and a network that is learning well lowers its error all the
time. Only a rise counts: the mean of the part kept must be above the mean of the part cut off (river's own ensembles,
too, compare ADWIN's estimate before and after). After any change, rise or fall, the detector begins anew, as river's
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.settings import DriftSettings
from pipeline.state import StateTree

# A detector that has seen so many bits without a change begins anew, so that its state stays bounded (12.5 kB) and so
# does the time to restore it (a tenth of a second). It may hide a change that began in the last few records before.
_BITS_KEPT = 100_000


class _Adwin(Protocol):
    """What is used of river's compiled ADWIN."""

    def update(self, value: float) -> bool: ...  # whether it saw a change
    def get_width(self) -> float: ...


class _PublicAdwin:
    """The same by way of river.drift.ADWIN."""

    def __init__(self, delta: float) -> None:
        from river.drift import ADWIN

        self._adwin = ADWIN(delta=delta)  # type: ignore[no-untyped-call]

    def update(self, value: float) -> bool:
        self._adwin.update(value)  # type: ignore[no-untyped-call]
        return bool(self._adwin.drift_detected)

    def get_width(self) -> float:
        return self._adwin.width


def _adwin(delta: float) -> _Adwin:
    """river.drift.ADWIN is a thin shell around this; but importing it brings pandas, scipy and scikit-learn with it:
    three seconds, and 150 MB for as long as the process lives."""
    try:
        from river._river_rust.drift import AdaptiveWindowing
    except ImportError:  # a name that river does not promise to keep
        return _PublicAdwin(delta)
    return cast(_Adwin, AdaptiveWindowing(delta=delta))


class DriftDetector:
    """ADWIN on error bits. river's ADWIN lives in compiled code and cannot be saved, so its own log is its state:
    the bits fed to it since it began, from which a restored one is fed again."""

    def __init__(self, settings: DriftSettings) -> None:
        self._settings = settings
        self._log = bytearray()  # one byte a bit: 1 = error
        self._adwin: _Adwin | None = None  # None: to be built from the log when it is needed

    def update(self, errors: Sequence[bool]) -> bool:
        """Feed these bits (True = the prediction was wrong), in log order. True if the error has risen at one of them.

        For each bit:
        1. It goes to ADWIN and into the log.
        2. Where ADWIN saw a change, the parts before and after it are compared, and both begin anew.
        3. Where the log is full, both begin anew.
        """
        if self._settings.detector is None:
            return False
        risen = False
        for error in errors:
            # 1.
            adwin = self._adwin if self._adwin is not None else self._rebuilt()
            changed = adwin.update(float(error))
            self._log.append(bool(error))
            # 2.
            if changed:
                risen = _mean_has_risen(self._log, int(adwin.get_width())) or risen
                self._begin_anew()
            # 3.
            elif len(self._log) == _BITS_KEPT:
                self._begin_anew()
        return risen

    def state(self) -> StateTree:
        """{"bits": uint8, eight bits a byte, the first in the highest place; "count": how many}."""
        return {
            "bits": torch.from_numpy(np.packbits(np.frombuffer(bytes(self._log), dtype=np.uint8))),
            "count": len(self._log),
        }

    def load_state(self, state: StateTree) -> None:
        count = cast(int, state["count"])
        bits = np.unpackbits(cast(Tensor, state["bits"]).numpy(), count=count)
        self._log = bytearray(bits.tobytes())
        self._adwin = None

    def _begin_anew(self) -> None:
        self._log.clear()
        self._adwin = None

    def _rebuilt(self) -> _Adwin:
        adwin = _adwin(self._settings.delta)
        for bit in self._log:
            adwin.update(float(bit))
        self._adwin = adwin
        return adwin


def _mean_has_risen(log: bytearray, kept: int) -> bool:
    """Whether the mean of the newest `kept` bits is above the mean of those before."""
    cut = len(log) - kept
    assert 0 < kept < len(log), f"ADWIN kept {kept} of {len(log)} bits"
    return sum(log[cut:]) * cut > sum(log[:cut]) * kept
