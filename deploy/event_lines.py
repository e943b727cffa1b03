"""Lines that a process tells: for a person who watches, or JSON, one object a line, where nobody does."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TextIO

import click


class EventLines:
    """Every line of JSON has `time` (seconds since 1970) and `event`, then the event's own facts."""

    def __init__(self, out: TextIO | None = None, *, as_json: bool | None = None) -> None:
        """`out` None: stderr. `as_json` None: where `out` is no terminal."""
        self._out = out
        self.as_json = not (out or sys.stderr).isatty() if as_json is None else as_json

    def say(self, event: str, text: str, facts: Mapping[str, object]) -> None:
        """`text`: what a person reads instead."""
        line = json.dumps({"time": time.time(), "event": event, **facts}, ensure_ascii=False) if self.as_json else text
        click.echo(line, file=self._out, err=self._out is None)
