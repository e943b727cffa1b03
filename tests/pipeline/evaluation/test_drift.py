from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river.drift import ADWIN
from torch import Tensor

from pipeline.evaluation import drift as module
from pipeline.evaluation.drift import DriftDetector
from pipeline.settings import DriftSettings
from pipeline.state import fingerprint
from tests.pipeline.evaluation.stored import stored_and_loaded

PROPERTY = settings(max_examples=30)


def bits(seed: int, *stretches: tuple[int, float]) -> list[bool]:
    """(records, error rate) after one another."""
    rng = np.random.default_rng(seed)
    return [bool(bit) for records, rate in stretches for bit in rng.random(records) < rate]


def fired_at(detector: DriftDetector, errors: list[bool]) -> list[int]:
    return [place for place, error in enumerate(errors) if detector.update([error])]


def test_a_rising_error_is_drift_and_a_falling_one_is_not() -> None:
    assert fired_at(DriftDetector(DriftSettings()), bits(0, (1000, 0.2), (300, 0.7)))
    assert not fired_at(DriftDetector(DriftSettings()), bits(0, (1000, 0.7), (1000, 0.2)))
    assert not fired_at(DriftDetector(DriftSettings()), bits(0, (5000, 0.3)))


def test_a_network_that_learns_and_then_meets_a_new_class() -> None:
    learning = [(200, 0.9), (200, 0.6), (200, 0.3), (1000, 0.1)]
    errors = bits(1, *learning, *learning)
    places = fired_at(DriftDetector(DriftSettings()), errors)
    assert places
    assert all(1600 <= place < 1800 for place in places)


@PROPERTY
@given(seed=st.integers(0, 1000), rates=st.lists(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]), min_size=1, max_size=6))
def test_it_fires_where_rivers_adwin_does_and_its_estimate_rises(seed: int, rates: list[float]) -> None:
    errors = bits(seed, *((150, rate) for rate in rates))
    adwin = ADWIN(delta=0.01)  # type: ignore[no-untyped-call]
    expected = []
    for place, error in enumerate(errors):
        estimate = 0.0 if adwin.drift_detected else adwin.estimation  # it begins anew on the update after a change
        adwin.update(float(error))  # type: ignore[no-untyped-call]
        if adwin.drift_detected and adwin.estimation > estimate:
            expected.append(place)
    assert fired_at(DriftDetector(DriftSettings(delta=0.01)), errors) == expected


def test_where_river_has_no_such_name_its_public_one_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = bits(2, (400, 0.1), (200, 0.8), (400, 0.1))
    expected = fired_at(DriftDetector(DriftSettings()), errors)
    monkeypatch.setitem(sys.modules, "river._river_rust.drift", None)
    assert expected
    assert fired_at(DriftDetector(DriftSettings()), errors) == expected


def test_what_river_alone_needs_is_not_imported() -> None:
    code = """
import sys
from pipeline.evaluation.drift import DriftDetector
from pipeline.settings import DriftSettings
DriftDetector(DriftSettings()).update([True])
print([name for name in ("river.drift", "pandas", "scipy.stats", "sklearn") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == "[]"


def test_bits_may_come_in_batches_of_any_size() -> None:
    errors = bits(2, (400, 0.1), (200, 0.8), (400, 0.1), (200, 0.8))
    one, other = DriftDetector(DriftSettings()), DriftDetector(DriftSettings())
    single = fired_at(one, errors)
    batched = [start for start in range(0, len(errors), 37) if other.update(errors[start : start + 37])]
    assert batched == sorted({place // 37 * 37 for place in single})
    assert fingerprint(one.state()) == fingerprint(other.state())


@PROPERTY
@given(seed=st.integers(0, 1000), restored_at=st.integers(0, 900))
def test_a_restored_detector_fires_where_the_other_does(seed: int, restored_at: int) -> None:
    errors = bits(seed, (300, 0.1), (300, 0.9), (300, 0.4))
    detector, restored = DriftDetector(DriftSettings()), DriftDetector(DriftSettings())
    fired_at(detector, errors[:restored_at])
    restored.update([True, False])
    restored.load_state(stored_and_loaded(detector.state()))
    assert fingerprint(restored.state()) == fingerprint(detector.state())
    assert fired_at(restored, errors[restored_at:]) == fired_at(detector, errors[restored_at:])
    assert fingerprint(restored.state()) == fingerprint(detector.state())


def test_the_state_is_eight_bits_a_byte() -> None:
    detector = DriftDetector(DriftSettings())
    detector.update([True, False, False, False, False, False, True, True, True])
    state = detector.state()
    assert isinstance(state["bits"], Tensor)
    assert state["bits"].tolist() == [0b10000011, 0b10000000]
    assert state["count"] == 9


def test_a_full_log_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BITS_KEPT", 500)
    detector = DriftDetector(DriftSettings())
    errors = bits(3, (499, 0.2))
    assert not detector.update(errors)
    assert detector.state()["count"] == 499
    assert not detector.update([False])
    assert detector.state()["count"] == 0
    fresh = DriftDetector(DriftSettings())
    errors = bits(4, (300, 0.1), (190, 0.9))
    assert fired_at(detector, errors) == fired_at(fresh, errors) != []


def test_no_detector_never_fires() -> None:
    detector = DriftDetector(DriftSettings(detector=None))
    assert not fired_at(detector, bits(0, (500, 0.1), (500, 0.9)))
    assert detector.state()["count"] == 0
