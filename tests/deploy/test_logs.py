from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from deploy.logs import configure_logs
from pipeline.user_error import UserError
from tests.deploy.command_line import environment


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_message_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    logging.getLogger("kafka.client").warning("first %s\n  second", "line")
    logging.getLogger("palimpsest").info("not asked for")
    assert capsys.readouterr().err == "warning: first line second\n"


def test_json_where_all_else_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    configure_logs(as_json=True)  # in place of the first one, not beside it
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    captured = capsys.readouterr()
    facts = json.loads(captured.err)
    assert {name: facts[name] for name in ("event", "level", "logger", "message")} == {
        "event": "log",
        "level": "error",
        "logger": "x",
        "message": "it failed (ValueError: a b)",
    }
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_another_level_on_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PALIMPSEST_LOG_LEVEL", "info")
    configure_logs()
    logging.getLogger("x").info("shown")
    assert capsys.readouterr().err == "info: shown\n"
    monkeypatch.setenv("PALIMPSEST_LOG_LEVEL", "loud")
    with pytest.raises(UserError, match="PALIMPSEST_LOG_LEVEL is 'LOUD'; use one of DEBUG, INFO, WARNING, ERROR"):
        configure_logs()


PROGRAM = """
import warnings
from deploy.logs import configure_logs
configure_logs()
for kind in (UserWarning, FutureWarning, DeprecationWarning):
    warnings.warn("for developers", kind)
"""


@pytest.mark.parametrize(("options", "lines"), [((), 0), (("-W", "always"), 3)])
def test_python_warnings_are_silent_unless_asked_for(options: tuple[str, ...], lines: int) -> None:
    done = subprocess.run(
        [sys.executable, *options, "-c", PROGRAM], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == lines
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())
