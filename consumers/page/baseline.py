"""The learner beside which this one is shown: another state folder, of the same stream learnt without retention.

Its newest snapshot is looked for while somebody looks at the page, by the thread that answers; no learner waits for it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from consumers.state_standing import StateStanding, newest_standing
from pipeline.user_error import UserError

_LOOK_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineLook:
    """What was found. `number` grows with every change; both None: there is no baseline."""

    number: int = 0
    found: StateStanding | None = None
    problem: str | None = None  # why there is none, or no newer one


class Baseline:
    """One folder that somebody else writes to."""

    def __init__(self, state: Path, *, stream: str) -> None:
        self._state = state
        self._stream = stream
        self._lock = threading.Lock()
        self._looked_at: float | None = None  # monotonic
        self._look = BaselineLook()

    def look(self) -> BaselineLook:
        """The newest, or what was found some seconds ago; one thread looks, the others do not wait for it."""
        if self._lock.acquire(blocking=self._looked_at is None):
            try:
                now = time.monotonic()
                if self._looked_at is None or now - self._looked_at >= _LOOK_SECONDS:
                    self._look = self._looked()
                    self._looked_at = time.monotonic()
            finally:
                self._lock.release()
        return self._look

    def _looked(self) -> BaselineLook:
        before = self._look
        found, problem = before.found, None
        try:
            newer = newest_standing(self._state, known=None if found is None else found.entry)
            if newer is not None and newer.stream != self._stream:
                problem = f"{self._state} holds the state of stream {newer.stream!r}, which is another one"
            else:
                found = newer or found
        except (UserError, OSError) as error:
            problem = str(error)
        if found is before.found and problem == before.problem:
            return before
        return BaselineLook(number=before.number + 1, found=found, problem=problem)
