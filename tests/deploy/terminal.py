"""A terminal of a test's own: a real pseudo-terminal, with a program in its foreground and an emulator that draws."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tests.deploy.command_line import environment
from tests.system_package import require_module

DEADLINE_SECONDS = 120.0
# The terminal becomes the one that Ctrl-C is typed on.
_PROGRAM = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
OF_A_TERMINAL = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
PALIMPSEST = "from deploy.cli import main; main()"


class Terminal:
    """`palimpsest ...`, or another Python `program`, on a terminal."""

    def __init__(
        self, *arguments: object, columns: int = 80, rows: int = 24, program: str = PALIMPSEST, **variables: str
    ) -> None:
        pyte: Any = require_module("pyte", extra="test")
        self.screen = pyte.HistoryScreen(columns, rows, history=1_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self._lock = threading.Lock()
        self.raw = b""  # all that was written to it
        self._ours, theirs = os.openpty()
        self._set_size(columns, rows)
        # without what the terminal of who runs the tests says of itself
        outside = {name: value for name, value in environment().items() if name not in OF_A_TERMINAL}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM + program, *map(str, arguments)],
            env={**outside, "TERM": "xterm-256color", **variables},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._reads = threading.Event()
        self._reads.set()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            self._reads.wait()
            try:
                written = os.read(self._ours, 65_536)
            except OSError:  # nobody has it open any more
                return
            with self._lock:
                self.raw += written
                self._stream.feed(written)

    # -- what a person does ------------------------------------------------------------------------------------------

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        with self._lock:
            self.screen.resize(rows, columns)
            self._set_size(columns, rows)

    def stand_still(self) -> None:
        """Takes nothing more, as after Ctrl-S."""
        self._reads.clear()

    def go_on(self) -> None:
        self._reads.set()

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    # -- what a person sees ------------------------------------------------------------------------------------------

    @property
    def lines(self) -> list[str]:
        """On the screen, without the empty ones at its end."""
        with self._lock:
            lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        """On the screen, and what has scrolled out of it."""
        with self._lock:
            above = [
                "".join(line[column].data for column in range(self.screen.columns)).rstrip()
                for line in self.screen.history.top
            ]
        return "\n".join([*above, *self.lines])

    @property
    def shows_cursor(self) -> bool:
        return not self.screen.cursor.hidden

    def wait_for(self, is_there: Callable[[Terminal], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_there(self):
            assert self.process.poll() is None or is_there(self), self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def end(self) -> int:
        """Its exit code, when it has ended by itself and all was drawn."""
        code = self.process.wait(DEADLINE_SECONDS)
        self._thread.join(DEADLINE_SECONDS)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.go_on()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._thread.join(DEADLINE_SECONDS)
        os.close(self._ours)
