"""Fixtures of the benchmarks' tests: MNIST, and torch as it was before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_ROOT = Path(os.environ.get("PALIMPSEST_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@pytest.fixture
def mnist() -> Path:
    if not (_ROOT / "MNIST" / "raw").is_dir():
        if os.environ.get("PALIMPSEST_TEST_ALL") == "1":
            pytest.fail(f"NO MNIST in {_ROOT}, and PALIMPSEST_TEST_ALL=1 lets nothing be skipped")
        pytest.skip(f"NO MNIST in {_ROOT}: set PALIMPSEST_TEST_DATA to the folder that holds MNIST/raw")
    return _ROOT


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """A benchmark sets it up for itself."""
    mode, threads = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    yield
    torch.set_deterministic_debug_mode(mode)
    torch.set_num_threads(threads)
