"""A shell in which a page's commands are given one after the other, as by a reader who has a folder for it.

What stays (a learner, a predictor, a worker) gets a terminal of its own: it runs in the background until the page ends,
when it gets SIGTERM and must end well; the next command is given when it is ready. A learner is ready when it has read
what lies there, which a reader sees.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from tests.docs.shell_commands import Command

DEADLINE_SECONDS = 120.0


@dataclass(slots=True, kw_only=True)
class _Staying:
    command: Command
    pid: int
    log: Path

    @property
    def place(self) -> tuple[str, ...]:
        """What no two of them share: a second one on the same state is one that the reader has started again."""
        words = self.command.words
        named = [word for before, word in itertools.pairwise(words) if before in ("--state", "--instance")]
        return (*words[:2], *named)


class PageShell:
    """bash in `folder`, whose standard output is told apart by command."""

    def __init__(self, folder: Path, logs: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._logs = folder, logs
        logs.mkdir()
        self._told, tell = os.pipe()
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            cwd=folder,
            env={**environment, "PAGE_TELLS": str(tell)},
            pass_fds=(tell,),
            text=True,
        )
        os.close(tell)
        os.set_blocking(self._told, False)
        self._unread = b""
        self._number = 0
        self._staying: list[_Staying] = []

    def run(self, command: Command, text: str) -> str:
        """Its output, when it has ended with 0. `text`: the command as this machine has it."""
        self._number += 1
        log = self._logs / f"{self._number:03}.log"
        code = self._do(f"{{ {text}\n}} >{log} 2>&1 </dev/null", "$?", command)
        said = log.read_text(errors="replace")
        assert code == 0, f"{command.block.where}: {command.text}\nended with {code}:\n{said}"
        assert "Traceback (most recent call last)" not in said, f"{command.block.where}: {command.text}\n{said}"
        return said

    def begin(self, command: Command, text: str) -> None:
        """It stays; returns when it is ready."""
        self._number += 1
        log = self._logs / f"{self._number:03}.log"
        text = text.rstrip().removesuffix("&")
        place = _Staying(command=command, pid=0, log=log).place
        for again in [one for one in self._staying if one.place == place]:
            self._end(again)
        pid = self._do(f"(exec env {text}\n) >{log} 2>&1 </dev/null &", "$!", command)
        staying = _Staying(command=command, pid=pid, log=log)
        self._staying.append(staying)
        self._wait_until(lambda: _is_ready(log), staying)

    @property
    def has_learner(self) -> bool:
        """Whether one stays that has the usual port of /metrics."""
        return any(one.command.words[1:2] == ["learn"] for one in self._staying)

    def close(self) -> None:
        """Everything that stays is ended, and was well."""
        for one in reversed(list(self._staying)):
            self._end(one)

    def _end(self, one: _Staying) -> None:
        self._staying.remove(one)
        with contextlib.suppress(ProcessLookupError):  # the page itself may have ended it
            os.kill(one.pid, signal.SIGTERM)
        code = self._do(f"wait {one.pid}", "$?", one.command)
        assert code in (0, 127, 128 + signal.SIGTERM), f"{one.command.text} ended with {code}:\n{one.log.read_text()}"

    def _do(self, script: str, answer: str, command: Command) -> int:
        """Give the script to bash; what `answer` is then."""
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{script}\necho {answer} >&$PAGE_TELLS\n")
        self._bash.stdin.flush()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while b"\n" not in self._unread:
            assert self._bash.poll() is None, f"{command.block.where}: {command.text}\nended the shell"
            assert time.monotonic() < deadline, f"{command.block.where}: {command.text}\nhas not ended: {self._last()}"
            try:
                self._unread += os.read(self._told, 4096)
            except BlockingIOError:
                time.sleep(0.01)
        line, _, self._unread = self._unread.partition(b"\n")
        return int(line)

    def _last(self) -> str:
        return (self._logs / f"{self._number:03}.log").read_text(errors="replace")

    def _wait_until(self, is_there: Callable[[], bool], one: _Staying) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_there():
            alive = Path(f"/proc/{one.pid}").exists() and "Z" not in _process_state(one.pid)
            assert alive, f"{one.command.block.where}: {one.command.text}\nhas ended:\n{one.log.read_text()}"
            assert time.monotonic() < deadline, f"{one.command.text} is not ready:\n{one.log.read_text()}"
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            for one in self._staying:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
            assert self._bash.stdin is not None
            self._bash.stdin.close()
            self._bash.wait(DEADLINE_SECONDS)
            os.close(self._told)


def _process_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def _is_ready(log: Path) -> bool:
    """It says where it shows its metrics, a moment after it says that it has started; these say the rest."""
    if not log.exists():  # the shell makes it, in its own time
        return False
    said = log.read_text(errors="replace")
    found = re.search(r'"url": "(http://[^"]+?)(?:/metrics)?"', said)
    return '"event": "started"' in said and found is not None and _has_caught_up(found[1])


def _has_caught_up(url: str) -> bool:
    """Nothing lies in the log that was not read, a snapshot tells of what was, and no version waits for MLflow."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return False
    values = {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    if any(name == "palimpsest_job_running" for name, _ in values):
        return True  # a worker reads no log: it looks for jobs
    lags = [value for (name, _), value in values.items() if name.endswith("_lag_records")]
    waiting = [value for (name, _), value in values.items() if name.endswith("registrations_waiting")]
    consumed = sum(value for (name, _), value in values.items() if name.endswith("_samples_consumed_total"))
    saved = [value for (name, _), value in values.items() if name.endswith("snapshot_last_success_timestamp_seconds")]
    told = not consumed or all(value > 0 for value in saved)
    return bool(lags) and not any(lags) and not any(waiting) and told
