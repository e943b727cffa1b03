"""What some tests need and not every machine has: programs of system packages, optional Python packages."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from types import ModuleType
from typing import NoReturn

import pytest


def require_program(name: str, *, package: str) -> str:
    """Its path. Without it the test is skipped, loudly; with PALIMPSEST_TEST_ALL=1, as in CI, it fails."""
    return _program(name, f"Install Debian's package {package}")


def require_go_program(name: str) -> str:
    """As above, of those that tests/deploy/programs/install builds."""
    return _program(name, "Run tests/deploy/programs/install, which needs Go")


def _program(name: str, way_out: str) -> str:
    path = shutil.which(name)
    if path is None:
        _give_up(f"{name} is not on PATH: NOT TESTED HERE. {way_out}")
    return path


def require_module(name: str, *, extra: str) -> ModuleType:
    """The module. Without it as above."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of itself and its own dependencies is not ours to mend
            return importlib.import_module(name)
    except ImportError as error:
        return _give_up(f"{name} cannot be imported ({error}): NOT TESTED HERE. pip install 'palimpsest[{extra}]'")


def _give_up(why: str) -> NoReturn:
    if os.environ.get("PALIMPSEST_TEST_ALL") == "1":
        pytest.fail(why)
    pytest.skip(why)
