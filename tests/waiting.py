"""Waiting for what comes by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE_SECONDS = 60.0
_PAUSE_SECONDS = 0.01


def wait_until(is_so: Callable[[], object], seconds: float = DEADLINE_SECONDS, *, otherwise: str = "") -> None:
    """Until `is_so()` is true. Fails after so many seconds, and says `otherwise`."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, otherwise or "waited in vain"
        time.sleep(_PAUSE_SECONDS)
