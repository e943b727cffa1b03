"""Learners as processes: started by a fork server, looked at, sent signals, waited for."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.deploy.command_line import environment
from tests.faults.fault_plan import VARIABLE, FaultPlan
from tests.faults.journal import read_journal

DEADLINE_SECONDS = 120.0
_LOOK_SECONDS = 0.01


class LearnerRun:
    """One process of `palimpsest learn`."""

    def __init__(self, *, pid: int, out: Path, plan: FaultPlan, ended: queue.SimpleQueue[dict[str, Any]]) -> None:
        self.pid = pid
        self.plan = plan
        self.peak_kib = 0
        self._out = out
        self._ended = ended
        self._code: int | None = None

    @property
    def text(self) -> str:
        """All that it said so far."""
        return self._out.read_text() if self._out.exists() else ""

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it said so far, but for the plain line that tells why a start was refused."""
        lines = [line for line in self.text.splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in lines if not line.startswith("palimpsest: ")]

    @property
    def journal(self) -> list[dict[str, Any]]:
        return read_journal(self.plan.journal)

    @property
    def code(self) -> int | None:
        """The exit code, or minus the signal that killed it; None: it runs."""
        if self._code is None:
            with contextlib.suppress(queue.Empty):
                self._note(self._ended.get_nowait())
        return self._code

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Until it has ended by itself."""
        if self._code is None:
            try:
                self._note(self._ended.get(timeout=seconds))
            except queue.Empty:
                raise AssertionError(f"it did not end within {seconds:.0f} s:\n{self.text}") from None
        assert self._code is not None
        return self._code

    def ends_within(self, seconds: float) -> bool:
        """Wait so long at most; whether it has ended."""
        if self._code is None:
            with contextlib.suppress(queue.Empty):
                self._note(self._ended.get(timeout=seconds))
        return self._code is not None

    def send(self, number: signal.Signals) -> None:
        """A signal; nothing where it has ended."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """-9, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait_until(self, is_so: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
        """It may not end before."""
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self.code is None or is_so(), f"it ended with {self.code} before {what}:\n{self.text}"
            assert time.monotonic() < deadline, f"not {what} within {seconds:.0f} s:\n{self.text}"
            time.sleep(_LOOK_SECONDS)

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """Until it says so on stderr."""
        self.wait_until(lambda: any(event["event"] == name for event in self.events), f"event {name}")
        return next(event for event in self.events if event["event"] == name)

    def wait_until_stopped(self) -> None:
        """Until the SIGSTOP that its plan holds has come over it."""
        self.wait_until(lambda: _state(self.pid) == "T", "stopped by SIGSTOP")

    def reached(self, point: str) -> bool:
        return any(line.get("point") == point or line.get("fault") == point for line in self.journal)

    def records_consumed(self) -> int:
        """As far as it has come, over all processes before it."""
        return max((line["records_consumed"] for line in self.journal if "trained" in line), default=0)

    def _note(self, ended: Mapping[str, Any]) -> None:
        self._code = ended["code"]
        self.peak_kib = ended["peak_kib"]


class ForkServer:
    """The handle of tests/faults/fork_server.py."""

    def __init__(self) -> None:
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server"],
            env=environment(**single),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._runs = 0
        self._started: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ended: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._alive: dict[int, LearnerRun] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._process.stdin.close()
            self._process.stdout.close()
            raise RuntimeError(f"the fork server did not start: it ended with {self._process.wait()}")
        self._reader.start()

    def start(
        self, arguments: Sequence[object], plan: FaultPlan, out: Path, more: Mapping[str, str] | None = None
    ) -> LearnerRun:
        """`palimpsest` with these arguments, in a process of its own."""
        self._runs += 1
        ended: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._ended[self._runs] = ended
        request = {
            "run": self._runs,
            "arguments": [str(argument) for argument in arguments],
            "environment": {VARIABLE: plan.encode(), **(more or {})},
            "out": str(out),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        pid = self._started.get(timeout=DEADLINE_SECONDS)
        assert pid is not None, "the fork server died"
        run = LearnerRun(pid=pid, out=out, plan=plan, ended=ended)
        self._alive[self._runs] = run
        return run

    def end_all(self) -> None:
        """Kill every learner that still runs: what a failed test left behind must not disturb the next."""
        for run in self._alive.values():
            if run.code is None:
                run.kill()
        self._alive.clear()

    def close(self) -> None:
        self.end_all()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(DEADLINE_SECONDS)
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "pid" in answer:
                self._started.put(answer["pid"])
            else:
                self._ended[answer["run"]].put(answer)
        self._started.put(None)
        for ended in self._ended.values():
            ended.put({"code": -signal.SIGKILL, "peak_kib": 0})  # they die with the server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _state(pid: int) -> str:
    """One letter of /proc: T is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
