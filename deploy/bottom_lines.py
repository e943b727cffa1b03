"""Lines at the bottom of a terminal that are drawn over and over, while others scroll above them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text


class BottomLines:
    """Draws while it is entered. The cursor is never hidden: whatever ends the process, even kill -9, leaves a terminal
    that can be typed on."""

    def __init__(self, console: Console, lines: Callable[[int], Sequence[Text]], *, stays: bool = False) -> None:
        """`lines(room)`: of at most so many columns, asked at each drawing. `stays`: the last ones, at the end."""
        self._console = console
        self._lines = _Lines(lines)
        self._live = _Live(console, self._lines, stays=stays)

    def draw(self, said: Sequence[str] = ()) -> None:
        """Anew, below what is said meanwhile. Colours of it are shown, other orders to the terminal are not obeyed."""
        with self._console:  # written out at once
            if said:
                self._console.print(*map(Text.from_ansi, said), sep="\n", soft_wrap=True)
            self._live.refresh()

    def __enter__(self) -> Self:
        self._live.start()
        self._console.show_cursor(True)  # which rich has hidden
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()


class _Lines:
    """What is drawn, and how much room it took when it was drawn last."""

    def __init__(self, lines: Callable[[int], Sequence[Text]]) -> None:
        self._lines = lines
        self.columns = 0  # of the terminal then
        self.widths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(1, options.max_width - 1)  # a character in the last column breaks the line on some terminals
        lines = self._lines(room)[: max(1, options.size.height - 1)]
        self.columns, self.widths = options.max_width, [line.cell_len for line in lines]
        yield Text("\n").join(lines)


class _Live(Live):
    """rich's, on a terminal whose size changes."""

    def __init__(self, console: Console, lines: _Lines, *, stays: bool) -> None:
        super().__init__(
            lines,
            console=console,
            auto_refresh=False,
            transient=not stays,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._drawn = lines

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """A terminal that has become narrower has broken what was drawn before into more rows, which rich does not know
        of: they would stay above the lines for good. (One that cuts them instead loses as many rows above them.)"""
        columns, rows = self.console.width, 0
        if columns < self._drawn.columns:
            rows = sum((width - 1) // columns for width in self._drawn.widths if width)
            self._drawn.columns = columns
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * rows
        erased = [Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up)] if rows else []
        return [*erased, *super().process_renderables(renderables)]
