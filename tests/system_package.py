"""Programs that a test needs and that come from a system package."""

from __future__ import annotations

import os
import shutil

import pytest


def require_program(name: str, *, package: str) -> str:
    """Its path. Without it the test is skipped, loudly; with PALIMPSEST_TEST_ALL=1, as in CI, it fails."""
    path = shutil.which(name)
    if path is not None:
        return path
    why = f"{name} is not on PATH: NOT TESTED HERE. Install Debian's package {package}"
    if os.environ.get("PALIMPSEST_TEST_ALL") == "1":
        pytest.fail(why)
    pytest.skip(why)
