"""What a job says of itself while it runs, and whether it is to stop."""

from __future__ import annotations

from collections.abc import Callable

# (stage, steps done, steps in all): each stage counts from 0
Progress = Callable[[str, int, int], None]


def nothing(_stage: str, _done: int, _total: int) -> None: ...


def never() -> bool:
    return False
