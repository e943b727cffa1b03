"""The one place that says where log messages and Python's warnings go.

Ours say what a person has to know (the brokers are away, checksums are slow). Libraries say much else: of theirs only
warnings and errors come through, each as one line in the look of what surrounds it, and never a Python warning meant
for their own developers. `PALIMPSEST_LOG_LEVEL=INFO` (or DEBUG) shows more, `python -W` all warnings.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings

import click

from deploy.exit_codes import one_line
from pipeline.user_error import UserError

LEVEL_VARIABLE = "PALIMPSEST_LOG_LEVEL"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class _Lines(logging.Handler):
    """Each message as one line on what stderr is at that moment: a progress bar may have put itself in its place."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = one_line(record.getMessage())
            if record.exc_info and record.exc_info[1] is not None:
                text += f" ({type(record.exc_info[1]).__name__}: {one_line(record.exc_info[1])})"
            level = record.levelname.lower()
            if self._as_json:
                facts = {"time": record.created, "event": "log", "level": level, "logger": record.name, "message": text}
                text = json.dumps(facts, ensure_ascii=False)
            else:
                text = f"{level}: {text}"
            click.echo(text, err=True)
        except Exception:
            self.handleError(record)


def configure_logs(*, as_json: bool = False) -> None:
    """Called by every command's start; once more by one that speaks JSON. Raises `UserError` for an unknown level."""
    level = os.environ.get(LEVEL_VARIABLE, "WARNING").upper()
    if level not in _LEVELS:
        raise UserError(f"{LEVEL_VARIABLE} is {level!r}; use one of {', '.join(_LEVELS)}")
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Lines)]:
        root.removeHandler(handler)
    root.addHandler(_Lines(as_json=as_json))
    root.setLevel(level)
    if not sys.warnoptions:  # whoever asks for them with -W or PYTHONWARNINGS gets them, as log lines
        warnings.simplefilter("ignore")
    logging.captureWarnings(True)
