"""Named places in commit, start and adoption where a test may kill the process. Without a test each is a no-op.

The names are those of the numbered steps: `snapshot.*` while one is written, `commit.*`, `transaction.*`, `start.*`,
`adopt.*`.
"""

from __future__ import annotations

from collections.abc import Callable

_hook: Callable[[str], None] | None = None


def fault_point(name: str) -> None:
    """The process has come to this place."""
    if _hook is not None:
        _hook(name)


def on_fault_point(hook: Callable[[str], None] | None) -> None:
    """For tests: call `hook(name)` at every one; None: at none."""
    global _hook
    _hook = hook
