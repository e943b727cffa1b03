"""The figures at the bottom of a terminal, while `learn` runs and its lines scroll above them.

Whoever says something on stderr meanwhile leaves it in a queue; a thread writes it out and draws, at most four times a
second. So a terminal that is slow, or stands still, or is gone stops no learning.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO, cast

from rich.console import Console
from rich.text import Text

from consumers.status_answer import StatusAnswer
from deploy.bottom_lines import BottomLines
from deploy.line_queue import LineQueue
from deploy.status_figures import Figure, live_figures

_SECONDS_BETWEEN_FRAMES = 0.25
# For the last lines to be written out at the end, by a thread that may wait for its turn on a busy machine; a terminal
# that takes none of them must not keep the process.
_LAST_FRAME_SECONDS = 5.0
_GAP = "  "


def is_drawn_on(out: TextIO) -> bool:
    """Whether this is a terminal that can be drawn on, and ours to draw on: not a job in its background."""
    console = Console(file=out)
    return out.isatty() and console.is_interactive and not console.is_dumb_terminal and _is_foreground(out)


class LiveStatus:
    """Draws while it is entered; afterwards the terminal is as if there had been lines alone."""

    def __init__(self, answer: Callable[[], StatusAnswer], *, is_stopping: Callable[[], bool]) -> None:
        """`answer()` and `is_stopping()` are asked from the thread that draws."""
        self._answer = answer
        self._is_stopping = is_stopping
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._stderr: TextIO = sys.stderr

    def __enter__(self) -> Self:
        self._stderr = sys.stderr
        lines = LineQueue(self._stderr)
        self._thread = threading.Thread(
            target=self._draw, args=(self._stderr, lines), name="palimpsest-terminal", daemon=True
        )
        sys.stderr = cast(TextIO, lines)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._thread is not None
        sys.stderr = self._stderr
        self._closing.set()
        self._thread.join(_LAST_FRAME_SECONDS)

    def _draw(self, terminal: TextIO, lines: LineQueue) -> None:
        def figures(room: int) -> list[Text]:
            return flowing(live_figures(self._answer(), is_stopping=self._is_stopping()), room)

        try:
            with BottomLines(Console(file=terminal), figures) as bottom:
                is_last = False
                while not is_last:
                    is_last = self._closing.wait(_SECONDS_BETWEEN_FRAMES)
                    said = lines.take(rest=is_last)
                    if _is_foreground(terminal):
                        bottom.draw(said)
                    else:  # somebody else's screen: only what has to be said
                        terminal.writelines(f"{line}\n" for line in said)
                        terminal.flush()
        except OSError:
            pass  # the terminal was closed; nobody sees what is said from now on, and learning goes on
        except BaseException:  # a bug: shown, and what is said from now on is said without us
            sys.stderr = self._stderr
            raise


def flowing(figures: Sequence[Figure], room: int) -> list[Text]:
    """As many a line as there is room for, so that 40 columns do as well as 120."""
    lines: list[Text] = []
    for figure in figures:
        cell = Text.assemble((f"{figure.name} ", "dim"), (figure.value, figure.style or "bold"), no_wrap=True)
        cell.truncate(room, overflow="ellipsis")
        padding = max(0, figure.width - Text(figure.value).cell_len)
        if lines and lines[-1].cell_len + len(_GAP) + cell.cell_len <= room:
            lines[-1].append(_GAP).append_text(cell)
        else:
            lines.append(cell)
        lines[-1].append(" " * min(padding, room - lines[-1].cell_len))
    for line in lines:
        line.rstrip()
    return lines


def _is_foreground(terminal: TextIO) -> bool:
    try:
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:  # it controls no jobs: a container's
        return True
