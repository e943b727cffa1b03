"""A text stream that keeps whole lines for the thread that draws: who writes to it never waits for a terminal."""

from __future__ import annotations

import io
import threading
from collections import deque
from typing import TextIO

# A terminal that stands still (Ctrl-S) for hours costs no more memory than this; then the oldest lines go.
_MOST_LINES = 1_000


class LineQueue(io.TextIOBase):
    """Stands in the place of `terminal`, and says of itself what that would."""

    def __init__(self, terminal: TextIO) -> None:
        super().__init__()
        self._terminal = terminal
        self._lock = threading.Lock()
        self._begun = ""
        self._lines: deque[str] = deque()
        self._lost = 0

    def write(self, text: str) -> int:
        with self._lock:
            *whole, self._begun = (self._begun + text).split("\n")
            self._lines.extend(whole)
            while len(self._lines) > _MOST_LINES:
                self._lines.popleft()
                self._lost += 1
        return len(text)

    def take(self, *, rest: bool = False) -> list[str]:
        """Whole lines since the last call; with `rest` what was begun is one too."""
        with self._lock:
            lines, self._lines = list(self._lines), deque()
            if self._lost:
                lines.insert(0, f"... {self._lost:,} lines are not shown: the terminal stood still")
                self._lost = 0
            if rest and self._begun:
                lines.append(self._begun)
                self._begun = ""
        return lines

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._terminal.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._terminal.errors
